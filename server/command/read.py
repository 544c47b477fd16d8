"""``ocr-onnx read``: documents to Markdown, JSON and text."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import FrameType
from typing import Any

from models import precedence
from models.arguments import read_config
from models.asking import question
from models.extraction import extraction
from models.layout.step import page_defaults
from models.model_errors import ConfigError, InvalidInput
from models.registration import ModelEntry
from models.registry import defaults_of, may_be_joint, reads_jointly
from models.settings import InferenceSettings
from runtime.documents import (
    DEFAULT_DPI,
    DPI_RANGE,
    SHOWN_PIXELS,
    Document,
    How,
    Limits,
    Stopped,
    Workers,
    enough_pixels,
    page_ranges,
    parse_pages,
)
from runtime.library import memory
from runtime.runtime_errors import RuntimeUnavailable
from server import flags
from server.ray.drawing import Drawing

from ..writers import CUT_OFF, FORMATS
from . import on_ray
from .command_errors import CommandFailed, Interrupted, UsageError
from .folder import OutputFolder
from .inputs import find_sources, output_names
from .material import OpenedAgain
from .plan import DocumentPlan
from .progress import Progress, configure_log, say
from .read_flags import READ_DEFAULTS, add_arguments, options_of, password_of, prompt_of, schema_of
from .readers import LocalReader, Reader
from .run import Run, Sink
from .signals import handled
from .stdout import Printer
from .target import target_of

DESCRIPTION = """\
Read documents: PDFs, pictures (PNG, JPEG, WebP, TIFF with all its frames, BMP, GIF), folders, patterns, - for standard
input. A single document without -o goes to standard output. A model that has not been exported yet is exported first.

In the output folder each document gets a file for each format, beside it images/ with its figures. ocr-run.jsonl there
has a line for every page: state, seconds, tokens, error. Finished pages survive Ctrl-C, a crash and a power cut.
"""
EXAMPLES = """\
examples:
  ocr-onnx read page.png                                  Markdown to standard output
  ocr-onnx read report.pdf -o out --format md,json        out/report.md, out/report.json, out/images/...
  ocr-onnx read scans/ -o out --resume                    a folder, going on where an earlier run stopped
  ocr-onnx read scans/ -o out --retry-failed              only the pages that failed
  ocr-onnx read book.pdf --pages 1-5,9 --task ocr --overlay -o out
  ocr-onnx read 'in/**/*.pdf' -o out --server http://gpu:8000 --jobs 16
  curl -s https://example.com/a.pdf | ocr-onnx read - --format txt

exit code: 0 all pages were read; 1 some failed or were left; 2 the command line cannot be carried out; 130 interrupted
"""

# An answer to all pages of a document may fill the model's context.
SEVERAL_DEFAULTS: Mapping[str, Any] = {"max_new_tokens": 100_000}
SERVER_JOBS = 4
MOST_WORKERS = 8  # processes that draw pages
DRAWING_BYTES = 640_000_000  # bytes for drawing one page: reading with the built-in model stays under 900 MB

__all__ = ["DESCRIPTION", "EXAMPLES", "ReadCommand", "add_arguments", "run"]

_LOCAL_ONLY = (
    "device", "dtype", "model_config", "tokenizer", "weights", "adapter", "slots", "threads", "stale_exports",
)  # fmt: skip


def run(given: Mapping[str, Any], command: type[ReadCommand] | None = None) -> int:
    """Run the command. Returns 0, or 1 when a page failed.

    command : the command's class, ``ReadCommand`` or one derived from it.

    Raises
    ------
    UsageError, CommandFailed, Interrupted
        see the exit codes in EXAMPLES.
    """
    configure_log(quiet=given["quiet"])
    memory.settle_malloc()
    try:
        return (command or ReadCommand)(given).run()
    except (InvalidInput, ConfigError) as error:
        raise UsageError(str(error)) from error
    except RuntimeUnavailable as error:
        raise CommandFailed(str(error)) from error


class ReadCommand:
    """One run of ``read``."""

    default_format = "md"

    def __init__(self, given: Mapping[str, Any]) -> None:
        """Check the flags.

        Raises
        ------
        UsageError, InvalidInput, ConfigError
            naming the wrong flag.
        """
        self._given = given
        self._settings_given = flags.given_settings(given)
        self._target = target_of(given, self.default_format)
        if given["server"] is not None:
            local = [name for name in _LOCAL_ONLY if name in given]
            if local:
                raise UsageError(f"--{local[0].replace('_', '-')} belongs to a model in this process, not to --server")
        on_ray.check(given)
        if given["dpi"] is not None and not DPI_RANGE[0] <= given["dpi"] <= DPI_RANGE[1]:
            raise UsageError(f"--dpi is {given['dpi']}; it must be between {DPI_RANGE[0]} and {DPI_RANGE[1]}")
        if given["pages"] is not None:
            page_ranges(given["pages"])
        for flag in ("resume", "retry_failed", "overlay", "join_tables"):
            if given[flag] and self._target.folder is None:
                raise UsageError(f"--{flag.replace('_', '-')} needs an output folder; name one with -o")
        self._config = read_config(given)
        self._options = options_of(self._config, given, self._settings_given)
        self._prompt = prompt_of(given)
        self._schema = schema_of(given["schema"])
        self._how = How(  # ``_reader`` adds the transparency, which is applied when pages are drawn
            dpi=given["dpi"] or DEFAULT_DPI,
            max_pixels=self._options.max_image_megapixels * 1_000_000,
            shown_pixels=SHOWN_PIXELS if given["dpi"] is None else None,
            password=password_of(given),
        )
        self._stop = threading.Event()
        self._limits = Limits(self._options.page_timeout, memory=DRAWING_BYTES)
        self._workers = Workers(min(os.cpu_count() or 1, MOST_WORKERS), self._limits)

    def run(self) -> int:
        """See ``run``."""
        folder = self._target.folder
        results = (
            None if self._target.single else folder
        )  # a folder of results is no input; a folder that holds a result may be
        sources = find_sources(
            self._given["inputs"],
            results,
            lambda: sys.stdin.buffer.read(),
            follow=not self._given["no_follow"],
            tell=say,
        )
        if len(sources) > 1 and (folder is None or self._target.single):
            raise UsageError(f"there are {len(sources)} documents; name a folder for their results with -o")
        with ExitStack() as stack:
            stack.enter_context(_stopping(self._stop))
            stack.enter_context(self._workers).warm()  # the worker is ready before the model
            reader = self._reader()
            stack.callback(reader.close)
            output = None
            names: Mapping[str, str] = {}
            if folder is not None:
                output = stack.enter_context(
                    OutputFolder(
                        folder,
                        self._target.formats,
                        overlay=self._given["overlay"],
                        single=self._target.single,
                        join_tables=self._given["join_tables"],
                    )
                )
                names = output.names
            plans = [
                DocumentPlan(source, name) for source, name in zip(sources, output_names(sources, names), strict=True)
            ]
            if output is not None:
                output.check_outputs(plans, self._given["force"])
            return self._read(plans, reader, output, stack)

    def _read(self, plans: list[DocumentPlan], reader: Reader, output: OutputFolder | None, stack: ExitStack) -> int:
        resume, retry = self._given["resume"], self._given["retry_failed"]
        if reader.identity() is None:
            reader.start()  # only an exported model has a fingerprint to compare with
        identity = reader.identity() or ""
        self._how = self._drawn_for(reader)
        alone, plans, found = len(plans) == 1, [], plans
        for plan in found:
            self._prepare(plan, identity, joint=reader.joint, alone=alone)
            if self._stop.is_set():
                raise Interrupted
            if plan.error is None and not plan.pages:
                there = _count_of(plan.page_count, "page")
                say(f"left: {plan.source.name} has {there}, and none of --pages {self._given['pages']}")
                continue
            plans.append(plan)
            if output is not None and (resume or retry):
                fingerprint = plan.fingerprint
                output.resume(plan, unread=resume, failures=retry)
                if reader.joint and plan.todo:
                    plan.read_whole(fingerprint)
            if plan.error is not None:
                say(f"failed: {plan.error}")
        total = sum(len(plan.todo) for plan in plans)
        slots = reader.start() if total else 1  # before ``begin``: if the reader fails, no finished page is lost
        sink: Sink
        if output is not None:
            sink = output
            output.begin(reader.describe(), plans, resume=resume or retry)
        else:
            again = stack.enter_context(
                OpenedAgain(plans[0].source, lambda: self._open(plans[0]), self._how.password or "")
            )
            put_together = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
            sink = Printer(self._target.formats[0], again, put_together)
        for plan in plans:
            if plan.error is not None:
                sink.fail(plan)

        def head(plan: DocumentPlan) -> Mapping[str, Any]:
            return {"document": plan.source.name, "page_count": plan.page_count, **reader.describe()}

        if isinstance(sink, Printer) and plans[0].error is None:
            sink.begin(plans[0], head(plans[0]))
        jobs = max(1, min(self._given["jobs"] or slots, total))
        progress = Progress(total, quiet=self._given["quiet"])
        started = time.monotonic()
        try:
            doubt = self._given["min_confidence"]
            if isinstance(reader, on_ray.ClusterReader):
                drawing = Drawing(self._how, self._limits)
                reader.read_all(plans, drawing, sink, head, self._open, progress, doubt)
            else:
                Run(reader, sink, self._open, head, progress, self._stop, doubt).read_all(plans, jobs)
        finally:
            progress.close()
            if isinstance(sink, Printer):
                sink.close()
            self._summarise(plans, total, time.monotonic() - started)
        if self._stop.is_set():
            raise Interrupted
        return 1 if any(plan.failed or plan.left or plan.error is not None for plan in plans) else 0

    def _drawn_for(self, reader: Reader) -> How:
        """Pages are drawn no larger than the model can use, unless --dpi asks for more or pictures are made of them."""
        if self._how.shown_pixels is None or any(FORMATS[form].shows for form in self._target.formats):
            return self._how
        return replace(self._how, shown_pixels=enough_pixels(reader.seen_pixels()))

    def _prepare(self, plan: DocumentPlan, identity: str, *, joint: bool, alone: bool) -> None:
        """Count the document's pages and choose the wanted ones; a picture among several documents is opened later.

        joint : pages are read together. alone : this is the only document.
        """
        plan.error = plan.source.problem
        if plan.error is not None:
            return
        try:
            if not alone and plan.source.is_one_page():
                plan.page_count = 1
            else:
                with self._open(plan) as document:
                    plan.page_count = document.page_count
            everything = range(plan.page_count)
            pages = self._given["pages"]
            plan.pages = everything if pages is None else parse_pages(pages, plan.page_count, clip=not alone)
            plan.password = self._how.password or ""
            plan.version = plan.source.fingerprint
            plan.fingerprint = self._fingerprint(plan, identity, joint=joint)
            plan.todo = plan.pages
        except Stopped:
            raise Interrupted from None
        except InvalidInput as error:
            where = "" if plan.source.name in str(error) else f"{plan.source.name}: "
            plan.error = f"{where}{error}"
        except OSError as error:
            plan.error = f"{plan.source.name} cannot be opened: {error}"

    def _fingerprint(self, plan: DocumentPlan, identity: str, *, joint: bool) -> str:
        how = (identity, self._how.dpi, self._how.shown_pixels, self._options.max_image_megapixels,
               self._given["overlay"],
               not any(FORMATS[form].links for form in self._target.formats),
               *(["upright"] if self._how.orient == "auto" else []),
               *(["pdf-a"] if "pdf-a" in self._target.formats else []),
               *(plan.pages if joint else ()))  # fmt: skip
        return hashlib.sha256(repr((plan.version, how)).encode()).hexdigest()[:32]

    def _open(self, plan: DocumentPlan) -> Document:
        return plan.source.open(self._how, self._workers, self._stop.is_set)

    def _reader(self) -> Reader:
        task, prompt = self._given["task"], self._prompt
        if self._given["server"] is not None:
            from .remote import RemoteReader

            drawing = precedence.resolve(self._config.inference, {}, self._settings_given, {})
            if "transparency" in self._settings_given:
                self._how = replace(self._how, transparency=self._settings_given["transparency"])
            self._how = replace(self._how, orient=drawing.orient)
            return RemoteReader(
                self._given["server"], self._given.get("model"), task=task, prompt=prompt, raw=self._given["raw"],
                schema=self._schema, settings={**READ_DEFAULTS, **self._settings_given},
                several={**SEVERAL_DEFAULTS, **self._settings_given} if may_be_joint(task, prompt) else None,
                api_key=self._given["api_key"], retries=self._given["retries"], timeout=self._given["timeout"],
                stop=self._stop, jobs=SERVER_JOBS,
            )  # fmt: skip
        entry = self._config.entry(self._options.model)
        if self._schema is None:
            asked = question(entry, task, prompt or "", 1)
        else:
            asked = extraction(entry, task, prompt or "", self._schema, 1)
        if asked.ignored:
            say(f"warning: {entry.id} knows only its own prompts; the pages are read with {asked.prompt!r}")
        if asked.note:
            say(f"warning: {asked.note}")
        settings = self._settings(entry, 1, READ_DEFAULTS, asked.prompt)
        self._how = replace(self._how, transparency=settings.transparency, orient=settings.orient)
        joint = reads_jointly(entry.family, asked.prompt)
        several = self._settings(entry, 2, SEVERAL_DEFAULTS) if joint else None
        if self._given["ray"] is not None:
            return on_ray.ClusterReader(
                self._config, self._options, asked.prompt, settings, self._stop, raw=self._given["raw"],
                schema=self._schema, several=several, address=self._given["ray"],
                actors=self._given["actors"] or "auto", quiet=self._given["quiet"],
            )  # fmt: skip
        return LocalReader(
            self._config, self._options, asked.prompt, settings, self._stop, raw=self._given["raw"],
            schema=self._schema, several=several,
        )  # fmt: skip

    def _settings(
        self, entry: ModelEntry, images: int, defaults: Mapping[str, Any], prompt: str = ""
    ) -> InferenceSettings:
        """Settings for answers to ``images`` images. defaults : of this command."""
        of_pages = page_defaults(entry, prompt) if images == 1 else {}
        inference = {**defaults_of(entry.family, images), **defaults, **of_pages, **self._config.inference}
        return precedence.resolve(inference, entry.defaults, self._settings_given, {})

    def _summarise(self, plans: Sequence[DocumentPlan], total: int, seconds: float) -> None:
        if self._given["quiet"]:
            return
        cut_off: dict[str, int] = {}
        for plan in plans:
            for detail, count in plan.cut_off.items():
                cut_off[detail] = cut_off.get(detail, 0) + count
        for detail, count in cut_off.items():
            say(f"warning: the text of {_count_of(count, 'page')} was cut off by {detail}; {CUT_OFF[detail]}")
        if self._target.folder is None:
            return
        failed, refused = sum(plan.failed for plan in plans), sum(plan.error is not None for plan in plans)
        left = sum(plan.left for plan in plans)
        rate = f", {total / seconds * 60:.1f} a minute" if total and seconds > 0 and not left else ""
        problems = [
            f"{_count_of(failed, 'page')} failed" if failed else "",
            f"{_count_of(refused, 'document')} could not be opened" if refused else "",
            f"{_count_of(left, 'page')} not read: --resume reads what is left" if left else "",
        ]
        say("; ".join(filter(None, [
            f"{_count_of(len(plans), 'document')}, {_count_of(total, 'page')} to read{rate}", *problems,
            f"results in {self._target.folder}",
        ])))  # fmt: skip


def _count_of(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _stopping(stop: threading.Event) -> contextlib.AbstractContextManager[None]:
    """Handle Ctrl-C: the first ends the run within one step of the model; the second at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(130)  # nothing is half-written, as every file is published whole
        stop.set()

    return handled(handle, signal.SIGINT, signal.SIGTERM)
