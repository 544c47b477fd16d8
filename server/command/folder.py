"""The output folder: finished pages as parts, whole documents published by rename, and the run manifest.

OUT/ocr-run.jsonl       one JSON object a line, flushed page by page: what was run, each page's state, each document's
OUT/.ocr-parts/         finished pages of documents that are not whole yet; a killed run goes on from them
OUT/<name>.md ...       whole documents
OUT/images/ overlays/   figures cut out, pages with their boxes, beside the document that links them

Nothing is written in place: a reader of OUT, and a run after a kill or a power cut, sees whole files only. A new file
is flushed to the disk before the old one is given up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

from models.turned import described_turn
from runtime.documents import parse_pages

from ..writers import FORMATS, Material, PageResult
from ..writers.figures import Pictures
from ..writers.joined import with_joined_tables
from . import buckets
from .command_errors import CommandFailed, UsageError
from .plan import DocumentPlan
from .stores import Disk, Store

MANIFEST = "ocr-run.jsonl"
PARTS = ".ocr-parts"
_PICTURE = re.compile(r"(.+)-p[0-9]+(-[0-9]+)?\.jpg")


@dataclass(frozen=True)
class _Part:
    """One page that a run has finished, read or failed."""

    version: str  # the document's fingerprint, see DocumentPlan
    fingerprint: str
    result: PageResult


class OutputFolder:
    """Where one run's results go. A context manager that locks the folder against other runs."""

    def __init__(
        self, folder: Path | str, formats: Sequence[str], *, overlay: bool, single: str | None = None,
        join_tables: bool = False,
    ) -> None:  # fmt: skip
        """folder : a path, or an address (see ``buckets``).

        single : file name of the only result of the only document (``-o page.md``).
        join_tables : see ``with_joined_tables``.
        """
        self._join_tables = join_tables
        self._formats, self._overlay, self._single = formats, overlay, single
        self._links = any(FORMATS[form].links for form in formats)
        self._parts = f".{single}{PARTS}" if single else PARTS
        manifest = f"{single}.{MANIFEST}" if single else MANIFEST
        self._store: Store = (
            Disk(folder, manifest, self._parts)
            if isinstance(folder, Path)
            else buckets.Bucket(folder, manifest, self._parts)
        )
        self._where_noted = self._store.where(manifest)
        self.names: dict[str, str] = {}  # document -> its output name, from earlier runs
        self._finished: dict[str, dict[str, Any]] = {}  # document -> its last line in the last run
        self._ours: set[str] = set()  # results below the folder that runs have written, or were about to
        self._listed: dict[str, dict[str, str]] = {}  # folder of pictures -> name before -p1 -> one of the files

    def __enter__(self) -> Self:
        """Lock the folder.

        Raises
        ------
        UsageError
            when the folder cannot be written, or another run is writing to it.
        """
        self._store.take()
        self._read_manifest()
        return self

    def __exit__(self, *_: object) -> None:
        self._store.leave()

    # Called before the pages.

    def check_outputs(self, plans: Sequence[DocumentPlan], force: bool) -> None:
        """Refuse to replace documents and pictures that no run has made.

        Raises
        ------
        UsageError
            naming the first one.
        """
        for plan in plans:
            outputs = [
                output for output in self._outputs(plan) if output not in self._ours and self._store.exists(output)
            ]
            if not force and (taken := [*outputs, *self._pictures_of_others(plan)]):
                raise UsageError(
                    f"{self._store.where(taken[0])} exists and was not made by this program; name another folder with "
                    "-o, or replace it with --force"
                )

    def begin(self, head: Mapping[str, Any], plans: Sequence[DocumentPlan], *, resume: bool) -> None:
        """Open the manifest and note the run. Without ``resume``, documents are read from their beginning.

        Raises
        ------
        CommandFailed
            when the disk refuses; ``settle``, ``finish`` and ``fail`` raise the same.
        """
        readable = [plan for plan in plans if plan.error is None]
        with _told(self._where_noted):
            there = set(self._store.names(self._parts))
            for plan in readable:
                # Parts of a whole document, too: a kill may have come between its line and the removal of its parts.
                if (plan.whole or not resume) and self._part_folder(plan).rpartition("/")[2] in there:
                    self._store.remove(self._part_folder(plan))
            self._store.begin()
        documents = {plan.source.name: plan.output for plan in readable if not resume or self._is_new(plan)}
        self.note("run", resume=resume, documents=documents, **head)

    def resume(self, plan: DocumentPlan, *, unread: bool, failures: bool) -> None:
        """Take over a document's pages from earlier runs, and set which pages are still to read.

        unread : read pages that no run has finished with these settings, and those that failed for a transient reason.
        failures : read failed pages once more; of a document that could not be opened, all. Without ``unread`` other
        pages stay as they are, whatever settings they were read with (and the new ones count as read with the same);
        pages of another version of the document are left.
        """
        if plan.error is not None:
            return
        plan.whole = self._is_whole(plan, unread)
        missing_too = unread or (failures and "error" in self._finished.get(plan.source.name, ()))
        todo = []
        before = None  # fingerprint of the finished pages
        for index in plan.pages if not plan.whole else ():
            part = self._load(plan, index)
            if part is not None and part.version == plan.version:
                before = before or part.fingerprint
            same = part is not None and part.fingerprint == plan.fingerprint
            if part is not None and part.result.state == "failed" and (failures or same):
                again = failures or part.result.transient
                todo += [index] if again else []
                plan.failed += not again
            elif part is not None and (same or (part.version == plan.version and not unread)):
                plan.count_cut_off(part.result.finish_detail)
            else:
                todo += [index] if missing_too else []
                plan.left += not missing_too
        plan.todo = todo
        if before is not None and not unread:
            plan.fingerprint = before

    # Called for each page by the threads that read.

    def pictures(self, plan: DocumentPlan) -> Pictures:
        """Which pictures to make of a document's pages."""
        return Pictures(
            self._beside(plan, "images") if self._links else None,
            self._beside(plan, "overlays") if self._overlay else None,
        )

    def put(self, plan: DocumentPlan, result: PageResult, made: Mapping[str, bytes]) -> None:
        """Write one page's pictures (see ``figures.Pictures``), then its part. Any thread may."""
        for name, picture in made.items():
            with self._store.publishing(name) as path:
                path.write_bytes(picture)
        content = {"version": plan.version, "fingerprint": plan.fingerprint, **result.to_json()}
        with self._publishing(self._part(plan, result.page - 1)) as file:
            file.write(json.dumps(content))

    def settle(self, plan: DocumentPlan, result: PageResult) -> None:
        """Write a page's line into the manifest."""
        if result.state == "failed":
            plan.failed += 1
        plan.count_cut_off(result.finish_detail)
        self.note(
            "page", document=plan.source.name, output=plan.output, page=result.page, state=result.state,
            seconds=round(result.seconds, 3), prompt_tokens=result.prompt_tokens,
            completion_tokens=result.completion_tokens, finish_detail=result.finish_detail, error=result.error,
            **({"confidence": asdict(result.confidence)} if result.confidence else {}),
            **({"doubtful": True} if result.doubtful else {}),
            **({"warnings": result.warnings} if result.warnings else {}),
            **({"truncated": True} if result.truncated else {}),
            **described_turn(result.rotated),
        )  # fmt: skip

    def finish(self, plan: DocumentPlan, head: Mapping[str, Any], material: Material) -> None:
        """Publish a document whose pages are all finished, and note that in the manifest.

        Results are claimed in the manifest before they are written, and parts are removed last, so that a kill at any
        step loses nothing.
        """
        outputs = self._outputs(plan)
        self.note("publishing", document=plan.source.name, output=plan.output, outputs=outputs)
        for form, output in zip(self._formats, outputs, strict=True):
            with _told(self._store.where(output)), self._publishing(output, binary=FORMATS[form].binary) as file:
                writer = FORMATS[form].write(file, material)
                writer.begin(head)
                for result in self._results(plan):
                    writer.page(result)
                writer.end()
        self.note(
            "document", document=plan.source.name, output=plan.output, state="failed" if plan.failed else "done",
            page_count=plan.page_count, pages=_numbers(plan.pages), failed=plan.failed, outputs=outputs,
            fingerprint=plan.fingerprint,
        )  # fmt: skip
        if not plan.failed:
            with _told(self._store.where(self._parts)):
                self._store.remove(self._part_folder(plan))

    def _results(self, plan: DocumentPlan) -> Iterable[PageResult]:
        """Results of all pages, one at a time in memory unless a writer needs them together."""
        results = (self._result(plan, index) for index in plan.pages)
        return with_joined_tables(list(results)) if self._join_tables else results

    def _result(self, plan: DocumentPlan, index: int) -> PageResult:
        part = self._load(plan, index)
        lost = PageResult(index + 1, "failed", "its part is not there any more; read it again")
        return part.result if part else lost

    def fail(self, plan: DocumentPlan) -> None:
        """Note in the manifest that a document cannot be opened."""
        self.note(
            "document", document=plan.source.name, output=plan.output, state="failed", error=plan.error,
            page_count=plan.page_count, pages="", failed=0, outputs=[], fingerprint=plan.fingerprint,
        )  # fmt: skip

    # Files.

    def _part_folder(self, plan: DocumentPlan) -> str:
        digest = hashlib.sha256(plan.source.name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return f"{self._parts}/{digest}"

    def _part(self, plan: DocumentPlan, index: int) -> str:
        return f"{self._part_folder(plan)}/{index + 1}.json"

    def _is_new(self, plan: DocumentPlan) -> bool:
        """Whether earlier runs have not noted this document under this name."""
        return self.names.get(plan.source.name) != plan.output

    def _is_whole(self, plan: DocumentPlan, unread: bool) -> bool:
        """Whether all wanted pages of a document have been published; see ``resume``."""
        last = self._finished.get(plan.source.name)
        if last is None or last["state"] != "done":
            return False
        if unread:
            wanted = last["fingerprint"] == plan.fingerprint and last["pages"] == _numbers(plan.pages)
        else:
            wanted = set(plan.pages) <= set(parse_pages(last["pages"], last["page_count"]))
        return wanted and all(self._store.exists(output) for output in self._outputs(plan))

    def _load(self, plan: DocumentPlan, index: int) -> _Part | None:
        """A page that this run or an earlier one has finished; None when there is none."""
        try:
            content = json.loads(self._store.read(self._part(plan, index)))
            part = _Part(content["version"], content["fingerprint"], PageResult.from_json(content))
            return part if part.result.page == index + 1 else None
        except (OSError, ValueError, KeyError, TypeError):  # missing, or torn by a power cut
            return None

    def _outputs(self, plan: DocumentPlan) -> list[str]:
        if self._single:
            return [self._single]
        return [f"{plan.output}.{FORMATS[form].ending}" for form in self._formats]

    def _beside(self, plan: DocumentPlan, kind: str) -> str:
        """Path of a document's pictures below the folder, in ``kind`` beside the results, without the endings."""
        above, _, name = plan.output.rpartition("/")
        if self._single:
            above, name = "", Path(self._single).stem
        return f"{above}/{kind}/{name}" if above else f"{kind}/{name}"

    def _pictures_of_others(self, plan: DocumentPlan) -> Iterator[str]:
        """Files that have the names of a document's pictures, and that no earlier run has made."""
        if self.names if self._single else not self._is_new(plan):
            return
        kinds = [*(["images"] if self._links else []), *(["overlays"] if self._overlay else [])]
        for kind in kinds:
            above, _, name = self._beside(plan, kind).rpartition("/")
            if above not in self._listed:
                self._listed[above] = {}
                for file in self._store.names(above):
                    if found := _PICTURE.fullmatch(file):
                        self._listed[above][found[1]] = file
            if name in self._listed[above]:
                yield f"{above}/{self._listed[above][name]}"

    @contextlib.contextmanager
    def _publishing(self, name: str, *, binary: bool = False) -> Iterator[IO[Any]]:
        with (
            self._store.publishing(name) as path,
            path.open("w+b")
            if binary
            else path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
        ):
            yield file

    # The manifest.

    def note(self, kind: str, **fields: Any) -> None:
        """Add a line to the manifest. Raises CommandFailed where the disk refuses."""
        line = {"type": kind, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        with _told(self._where_noted):
            self._store.add(json.dumps(line, ensure_ascii=False), durable=kind != "page")  # a page survives by its part

    def _read_manifest(self) -> None:
        """Read names and states of documents from earlier runs. Malformed lines are skipped."""
        with _told(self._where_noted, "read"):
            for text in self._store.lines():
                try:
                    self._take_line(json.loads(text))
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # a line that a kill has cut off

    def _take_line(self, line: Mapping[str, Any]) -> None:
        if line["type"] == "run":
            self.names.update(line["documents"])
            for document in line["documents"] if not line["resume"] else ():
                self._finished.pop(document, None)
        else:
            self.names[line["document"]] = line["output"]
        if line["type"] == "document":
            self._finished[line["document"]] = dict(line)
        if line["type"] in ("publishing", "document"):
            self._ours.update(line["outputs"])


@contextlib.contextmanager
def _told(target: str, what: str = "written") -> Iterator[None]:
    """Turn OSError into CommandFailed, with the reason."""
    try:
        yield
    except OSError as error:
        raise CommandFailed(f"{target} cannot be {what}: {error}; go on with --resume") from error


def _numbers(pages: Sequence[int]) -> str:
    """Page indices as ranges of page numbers: 1-5,9."""
    ranges: list[list[int]] = []
    for index in pages:
        if ranges and ranges[-1][1] == index:
            ranges[-1][1] = index + 1
        else:
            ranges.append([index + 1, index + 1])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
