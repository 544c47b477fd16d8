"""The output folder: finished pages as parts, whole documents published by rename, and the run manifest.

OUT/ocr-run.jsonl       one JSON object a line, flushed page by page: what was run, each page's state, each document's
OUT/.ocr-parts/         finished pages of documents that are not whole yet; a killed run goes on from them
OUT/<name>.md ...       whole documents
OUT/images/ overlays/   figures cut out, pages with their boxes, beside the document that links them

Nothing is ever written in place: a reader of OUT, and a run that comes after a kill, sees whole files only.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TextIO

from filelock import FileLock, Timeout
from PIL import Image

from .errors import UsageError
from .figures import JPEG_QUALITY, cut_out, figure_boxes, overlay
from .formats import WRITERS, PageResult
from .plan import DocumentPlan

MANIFEST = "ocr-run.jsonl"
PARTS = ".ocr-parts"


class OutputFolder:
    """Where one run's results go. A context manager: two runs never write to one folder at once."""

    def __init__(self, folder: Path, formats: Sequence[str], *, overlay: bool, single: str | None = None) -> None:
        """single : file name of the only document's only result, instead of names of their own (``-o page.md``)."""
        prefix = f".{single}" if single else ""
        self.folder = folder
        self._formats, self._overlay = formats, overlay
        self._manifest_path = folder / (f"{single}.{MANIFEST}" if single else MANIFEST)
        self._parts = folder / f"{prefix}{PARTS}"
        self._single = single
        self._lock = FileLock(self._parts / "lock")
        self._manifest: TextIO | None = None
        self.names: dict[str, str] = {}  # document -> its output name, from earlier runs
        self._finished: dict[str, dict[str, Any]] = {}  # document -> its last line in the last run
        self._ours: set[str] = set()  # files below the folder that runs have written

    def __enter__(self) -> Self:
        """Take the folder.

        Raises
        ------
        UsageError
            when it cannot be written, or another run is writing to it.
        """
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"another run is writing to {self.folder}; wait for it, or name another folder") from None
        except OSError as error:
            raise UsageError(f"{self.folder} cannot be written: {error}; name another folder with -o") from error
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir()
        self._read_manifest()
        return self

    def __exit__(self, *_: object) -> None:
        if self._manifest is not None:
            self._manifest.close()
        shutil.rmtree(self._temporary, ignore_errors=True)
        empty = not any(path.is_dir() for path in self._parts.iterdir())
        self._lock.release()
        if empty:
            shutil.rmtree(self._parts, ignore_errors=True)

    # Before the pages.

    def check_outputs(self, plans: Sequence[DocumentPlan], force: bool) -> None:
        """Refuse to replace files that no run has made.

        Raises
        ------
        UsageError
            naming the first.
        """
        for plan in plans:
            for output in self._outputs(plan):
                if not force and output not in self._ours and (self.folder / output).exists():
                    raise UsageError(
                        f"{self.folder / output} exists and was not made by this program; name another folder with -o, "
                        "or replace it with --force"
                    )

    def begin(self, head: Mapping[str, Any], *, resume: bool) -> None:
        """Open the manifest. Without ``resume`` all documents are read from their beginning."""
        if not resume:
            self._finished.clear()
            for part in self._parts.iterdir():
                if part.is_dir() and part != self._temporary:
                    shutil.rmtree(part)
        self._end_torn_line()
        self._manifest = self._manifest_path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")
        self._note("run", resume=resume, **head)

    def resume(self, plan: DocumentPlan, *, unread: bool, failures: bool) -> None:
        """Take over what an earlier run has finished of a document, and set what is still to do.

        unread : read pages that no run has dealt with. failures : read those that failed once more.
        """
        last = self._finished.get(plan.source.name)
        same = last is not None and last["fingerprint"] == plan.fingerprint
        if same and last is not None and last["state"] == "done" and last["pages"] == _numbers(plan.pages):
            plan.whole = all((self.folder / output).is_file() for output in self._outputs(plan))
            if plan.whole:
                plan.todo = ()
                return
        if plan.error is not None:
            return
        todo = []
        for index in plan.pages:
            part = self._load(plan, index)
            if part is None:
                todo += [index] if unread else []
                plan.left += not unread
            elif part.state == "failed":
                todo += [index] if failures else []
                plan.failed += not failures
            else:
                plan.count_cut_off(part.finish_detail)
        plan.todo = todo

    # Page by page; called by the threads that read.

    def keep(self, plan: DocumentPlan, result: PageResult, page: Image.Image | None) -> PageResult:
        """Write what one page gave: its figures and overlay, then its part. Returns the result with its links."""
        if page is not None:
            result = replace(result, figures=self._write_figures(plan, result, page))
            if self._overlay:
                self._publish_image(overlay(page, result.boxes), self._beside(plan, "overlays", f"p{result.page}"))
        folder = self._part_folder(plan)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"fingerprint": plan.fingerprint, **result.to_json()}
        with self._publishing(self._part(plan, result.page - 1)) as file:
            file.write(json.dumps(content))
        return result

    def settle(self, plan: DocumentPlan, result: PageResult) -> None:
        """Write a page's line into the manifest."""
        if result.state == "failed":
            plan.failed += 1
        plan.count_cut_off(result.finish_detail)
        self._note(
            "page", document=plan.source.name, output=plan.output, page=result.page, state=result.state,
            seconds=round(result.seconds, 3), prompt_tokens=result.prompt_tokens,
            completion_tokens=result.completion_tokens, finish_detail=result.finish_detail, error=result.error,
        )  # fmt: skip

    def finish(self, plan: DocumentPlan, head: Mapping[str, Any]) -> None:
        """Publish a document all of whose pages have been dealt with, and note it."""
        outputs = []
        for form, output in zip(self._formats, self._outputs(plan), strict=True):
            with self._publishing(self.folder / output) as file:
                writer = WRITERS[form](file)
                writer.begin(head)
                for index in plan.pages:
                    part = self._load(plan, index)
                    writer.page(
                        part or PageResult(index + 1, "failed", "its part is not there any more; read it again")
                    )
                writer.end()
            outputs.append(output)
        if not plan.failed:
            shutil.rmtree(self._part_folder(plan), ignore_errors=True)
        self._note(
            "document", document=plan.source.name, output=plan.output, state="failed" if plan.failed else "done",
            page_count=plan.page_count, pages=_numbers(plan.pages), failed=plan.failed, outputs=outputs,
            fingerprint=plan.fingerprint,
        )  # fmt: skip

    def fail(self, plan: DocumentPlan) -> None:
        """Note a document that cannot be opened."""
        self._note(
            "document", document=plan.source.name, output=plan.output, state="failed", error=plan.error,
            page_count=plan.page_count, pages="", failed=0, outputs=[], fingerprint=plan.fingerprint,
        )  # fmt: skip

    # Files.

    @property
    def _temporary(self) -> Path:
        return self._parts / "tmp"

    def _part_folder(self, plan: DocumentPlan) -> Path:
        digest = hashlib.sha256(plan.source.name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return self._parts / digest

    def _part(self, plan: DocumentPlan, index: int) -> Path:
        return self._part_folder(plan) / f"{index + 1}.json"

    def _load(self, plan: DocumentPlan, index: int) -> PageResult | None:
        """A page that an earlier run, or this one, has dealt with in the same way; None when there is none."""
        try:
            content = json.loads(self._part(plan, index).read_bytes())
            if content["fingerprint"] != plan.fingerprint or content["page"] != index + 1:
                return None
            return PageResult.from_json(content)
        except (OSError, ValueError, KeyError, TypeError):  # not there, or from a power cut
            return None

    def _outputs(self, plan: DocumentPlan) -> list[str]:
        if self._single:
            return [self._single]
        return [f"{plan.output}.{form}" for form in self._formats]

    def _beside(self, plan: DocumentPlan, kind: str, what: str) -> str:
        """Path of a picture below the folder: in ``kind`` beside the document's own results."""
        above, _, name = plan.output.rpartition("/")
        return f"{above}/{kind}/{name}-{what}.jpg" if above else f"{kind}/{name}-{what}.jpg"

    def _write_figures(self, plan: DocumentPlan, result: PageResult, page: Image.Image) -> tuple[str, ...]:
        """Cut the figures out; returns their links from the document. One place that comes twice is one file."""
        if self._formats == ["txt"]:
            return ()
        written: dict[tuple[int, int, int, int], str] = {}
        links = []
        for box in figure_boxes(result.boxes):
            if box.box not in written:
                name = self._beside(plan, "images", f"p{result.page}-{len(written)}")
                self._publish_image(cut_out(page, box), name)
                written[box.box] = "/".join(name.split("/")[-2:])
            links.append(written[box.box])
        return tuple(links)

    def _publish_image(self, image: Image.Image, name: str) -> None:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        with self._publishing_path(self.folder / name) as path:
            path.write_bytes(buffer.getbuffer())

    @contextlib.contextmanager
    def _publishing(self, target: Path) -> Iterator[TextIO]:
        with (
            self._publishing_path(target) as path,
            path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
        ):
            yield file

    @contextlib.contextmanager
    def _publishing_path(self, target: Path) -> Iterator[Path]:
        """A temporary file that takes its place when the block ends well."""
        handle, name = tempfile.mkstemp(dir=self._temporary)
        os.close(handle)
        path = Path(name)
        try:
            yield path
            path.chmod(0o644)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        finally:
            path.unlink(missing_ok=True)

    # The manifest.

    def _note(self, kind: str, **fields: Any) -> None:
        assert self._manifest is not None
        line = {"type": kind, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        self._manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._manifest.flush()

    def _read_manifest(self) -> None:
        """Take from earlier runs which document has which name and state. Lines that make no sense are passed over."""
        try:
            file = self._manifest_path.open(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        with file:
            for text in file:
                try:
                    self._take_line(json.loads(text))
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # a line that a kill cut off

    def _take_line(self, line: Mapping[str, Any]) -> None:
        if line["type"] == "run" and not line["resume"]:
            self._finished.clear()
        if line["type"] in ("page", "document"):
            self.names[line["document"]] = line["output"]
        if line["type"] == "document":
            self._finished[line["document"]] = dict(line)
            self._ours.update(line["outputs"])

    def _end_torn_line(self) -> None:
        """A line that a kill cut off must not swallow the next one."""
        with contextlib.suppress(FileNotFoundError), self._manifest_path.open("r+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")


def _numbers(pages: Sequence[int]) -> str:
    """Page indices as ranges of page numbers: 1-5,9."""
    ranges: list[list[int]] = []
    for index in pages:
        if ranges and ranges[-1][1] == index:
            ranges[-1][1] = index + 1
        else:
            ranges.append([index + 1, index + 1])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
