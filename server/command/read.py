"""``ocr-onnx read``: documents to Markdown, JSON and text."""

from __future__ import annotations

import argparse
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
from pathlib import Path
from types import FrameType
from typing import Any

from models import precedence
from models.arguments import read_config
from models.asking import question
from models.config import Config
from models.errors import ConfigError, InvalidInput
from models.extraction import extraction, schema_text
from models.family import IMAGE_SLOT
from models.layout.step import page_defaults
from models.registration import ModelEntry
from models.registry import defaults_of, may_be_joint, reads_jointly
from models.settings import InferenceSettings
from runtime.documents import DEFAULT_DPI, DPI_RANGE, Document, How, Limits, Stopped, Workers, page_ranges, parse_pages
from runtime.errors import RuntimeUnavailable
from runtime.library import memory
from server import flags
from server.options import ServerOptions, server_options
from server.ray.drawing import Drawing

from ..writers import CUT_OFF, FORMATS
from . import on_ray
from .errors import CommandFailed, Interrupted, UsageError
from .folder import OutputFolder
from .inputs import find_sources, output_names
from .material import OpenedAgain
from .plan import DocumentPlan
from .progress import Progress, configure_log, say
from .readers import LocalReader, Reader
from .run import Run, Sink
from .signals import handled
from .stdout import Printer
from .target import ENDINGS, format_list, one_of, target_of

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

# A page is read to its end here; the server's default is made for clients that set their own.
READ_DEFAULTS: Mapping[str, Any] = {"max_new_tokens": 8192}
# An answer to all pages of a document is as long as the model's context lets it be.
SEVERAL_DEFAULTS: Mapping[str, Any] = {"max_new_tokens": 100_000}
SERVER_JOBS = 4
MOST_WORKERS = 8  # processes that draw pages at once
_MOST_SECONDS = 1_000_000  # more than any page takes, and less than what a socket cannot hold

SHOWN_PIXELS = 12_000_000  # of a page, unless --dpi asks for more: the most that any family's image settings take in
SHOWN_TIMES = 2  # as many pixels as the model sees are enough of a page, which the model's own resize makes smaller
LEAST_SHOWN = 2_010_000  # of a page, whatever the model sees: a sheet of A4 at the default dpi stays as it is
PASSWORD_VARIABLE = "OCR_ONNX_PDF_PASSWORD"

_LOCAL_ONLY = (
    "device", "dtype", "model_config", "tokenizer", "weights", "adapter", "slots", "threads", "stale_exports",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of ``read``. Those of the model and its settings leave no trace when they are not given."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="file, folder, quoted pattern, address (s3://, gs://, az://, https:// ...), or - for stdin",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        default=None,
        help=f"folder for the results; for a single document also a file that ends in {one_of(ENDINGS)}",
    )
    output.add_argument("--format", metavar="LIST", default=None, type=format_list,
                        help=f"{', '.join(FORMATS)}, or several with commas between (default: md)")  # fmt: skip
    output.add_argument(
        "--pdf-a", action="store_true", default=False, help="write PDF as PDF/A-2b: pages are pictures with their text"
    )
    output.add_argument(
        "--overlay", action="store_true", default=False, help="write each page with its boxes drawn, to overlays/"
    )
    output.add_argument(
        "--join-tables", action="store_true", default=False, help="write tables that go on on the next page as one"
    )
    output.add_argument(
        "--force", action="store_true", default=False, help="replace result files that this program has not made"
    )
    output.add_argument(
        "--min-confidence",
        type=probability,
        metavar="P",
        default=0.0,
        help="mark pages whose tokens have a lower mean probability, from 0 to 1, as doubtful (default: 0, none)",
    )
    output.add_argument("--quiet", action="store_true", default=False, help="no progress bar, no summary; errors only")
    what = parser.add_argument_group("what to read")
    what.add_argument(
        "--no-follow", action="store_true", default=False, help="do not look into linked folders (default: once each)"
    )
    what.add_argument("--pages", metavar="LIST", default=None, help="pages of each document, such as 1-5,9 or 12-")
    what.add_argument(
        "--dpi",
        type=int,
        metavar="N",
        default=None,
        help=f"dots per inch at which the pages of a PDF are drawn (default: {DEFAULT_DPI}, and no page larger than "
        f"twice what the model sees, or {SHOWN_PIXELS // 1_000_000} megapixels)",
    )
    what.add_argument(
        "--password",
        metavar="TEXT",
        default=None,
        help=f"what opens encrypted PDFs; better in the environment, as {PASSWORD_VARIABLE}",
    )
    what.add_argument(
        "--task",
        metavar="NAME",
        default=None,
        help="what to ask: markdown, ocr, ... (ocr-onnx models lists each model's; default: the model's)",
    )
    what.add_argument(
        "--prompt",
        metavar="TEXT",
        default=None,
        help="a prompt of your own, or the words that the task is about (--task locate)",
    )
    what.add_argument(
        "--raw", action="store_true", default=False, help="the text as the model writes it: tables as OTSL ..."
    )
    what.add_argument(
        "--schema", type=Path, metavar="FILE", default=None,
        help="a JSON schema that each page's answer follows, for models that can be asked for fields",
    )  # fmt: skip
    what.add_argument("--prompt-file", type=Path, metavar="FILE", default=None, help="the prompt, from a file")
    going_on = parser.add_argument_group("going on")
    going_on.add_argument(
        "--resume",
        action="store_true",
        default=False,
        help="keep what an earlier run into OUT has read, with the same model and settings; read what is missing",
    )
    going_on.add_argument(
        "--retry-failed",
        action="store_true",
        default=False,
        help="read the pages that failed once more, and documents that could not be opened, with other settings too; "
        "without --resume nothing else",
    )
    going_on.add_argument(
        "--jobs",
        type=_count,
        metavar="N",
        default=None,
        help="pages in flight (default: the model's slots; with --server 4)",
    )
    remote = parser.add_argument_group("a running server instead of a model in this process")
    remote.add_argument("--server", metavar="URL", default=None, help="address of a server, such as http://gpu:8000")
    remote.add_argument(
        "--api-key", metavar="KEY", default=None, help="its API key; better in the environment, as OCR_ONNX_API_KEY"
    )
    remote.add_argument(
        "--retries",
        type=_count_or_none,
        metavar="N",
        default=8,
        help="how often a page is sent again when the server is busy or away (default: 8)",
    )
    remote.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        default=600.0,
        help="seconds of silence after which the server counts as gone (default: 600)",
    )
    on_ray.add_arguments(parser)
    flags.add_model_flags(parser.add_argument_group("model"), "model to read with; with --server one of its own")
    machine = parser.add_argument_group("machine")
    flags.add_server_flags(machine, "slots", "threads", "max_image_megapixels", "page_timeout", "stale_exports")
    flags.add_setting_flags(parser.add_argument_group("decoding"), READ_DEFAULTS)


def run(given: Mapping[str, Any], command: type[ReadCommand] | None = None) -> int:
    """Read everything. Returns 0, or 1 when a page failed.

    command : what does it, where that is another than ``read`` itself.

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
    """One call of the program."""

    default_format = "md"

    def __init__(self, given: Mapping[str, Any]) -> None:
        """Check the flags.

        Raises
        ------
        UsageError, InvalidInput, ConfigError
            naming the flag that is wrong.
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
        self._options = _options(self._config, given, self._settings_given)
        self._prompt = _prompt(given)
        self._schema = _schema(given["schema"])
        self._how = How(  # ``_reader`` adds the transparency, since pages are drawn before a reader gets them
            dpi=given["dpi"] or DEFAULT_DPI,
            max_pixels=self._options.max_image_megapixels * 1_000_000,
            shown_pixels=SHOWN_PIXELS if given["dpi"] is None else None,
            password=_password(given),
        )
        self._stop = threading.Event()
        self._workers = Workers(min(os.cpu_count() or 1, MOST_WORKERS), Limits(self._options.page_timeout))

    def run(self) -> int:
        """See ``run``."""
        folder = self._target.folder
        results = (
            None if self._target.single else folder
        )  # a folder of results is no input; one that has a result may be
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
            stack.enter_context(self._workers).warm()  # which is ready before the model is
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
            reader.start()  # the model is exported before anything can be compared with it
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
        slots = reader.start() if total else 1  # before begin: a reader that cannot start costs no finished page
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
                drawing = Drawing(self._how, Limits(self._options.page_timeout))
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
        """No page is drawn larger than the model can make use of, unless somebody asks for it or is shown the page."""
        seen = reader.seen_pixels()
        if seen is None or self._how.shown_pixels is None or any(FORMATS[form].shows for form in self._target.formats):
            return self._how
        return replace(self._how, shown_pixels=min(self._how.shown_pixels, max(SHOWN_TIMES * seen, LEAST_SHOWN)))

    def _prepare(self, plan: DocumentPlan, identity: str, *, joint: bool, alone: bool) -> None:
        """Count the document's pages and say which are wanted; a picture among others is opened in its turn.

        joint : they are read together. alone : it is the only document.
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
        if self._given["ray"] is not None:
            if joint:
                raise UsageError(
                    f"--task {task}: a document is one answer there, which --ray does not spread; leave it out"
                )
            return on_ray.ClusterReader(
                self._config, self._options, asked.prompt, settings, self._stop, raw=self._given["raw"],
                schema=self._schema, address=self._given["ray"],
                actors=self._given["actors"] or "auto", quiet=self._given["quiet"],
            )  # fmt: skip
        return LocalReader(
            self._config, self._options, asked.prompt, settings, self._stop, raw=self._given["raw"],
            schema=self._schema, several=self._settings(entry, 2, SEVERAL_DEFAULTS) if joint else None,
        )  # fmt: skip

    def _settings(
        self, entry: ModelEntry, images: int, defaults: Mapping[str, Any], prompt: str = ""
    ) -> InferenceSettings:
        """For answers to so many images. defaults : of this command."""
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


def _password(given: Mapping[str, Any]) -> str | None:
    password: str | None = given["password"]
    return password if password is not None else os.environ.get(PASSWORD_VARIABLE)


def _prompt(given: Mapping[str, Any]) -> str | None:
    prompt: str | None = given["prompt"]
    file: Path | None = given["prompt_file"]
    if file is not None:
        if prompt is not None:
            raise UsageError("--prompt and --prompt-file say the same thing; leave one out")
        try:
            prompt = file.expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--prompt-file {file} cannot be read: {error}") from error
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty; leave it out for the model's default task")
    if prompt is not None and prompt.count(IMAGE_SLOT) > 1:
        raise UsageError(f"the prompt has {prompt.count(IMAGE_SLOT)} {IMAGE_SLOT} slots; a page takes one")
    return prompt


def _schema(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return schema_text(file.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, InvalidInput) as error:
        raise UsageError(f"--schema {file} cannot be taken: {error}") from error


def _options(config: Config, given: Mapping[str, Any], inference: Mapping[str, Any]) -> ServerOptions:
    return server_options(
        config.server,
        {**given, "vision_cache_mb": 0.0},  # no page is asked about twice
        model=given.get("model", config.active),
        device=given.get("device", config.device or "cpu"),
        dtype=given.get("dtype"),
        model_config=given.get("model_config"),
        tokenizer=given.get("tokenizer"),
        weights=given.get("weights"),
        adapter=given.get("adapter"),
        inference_flags=inference,
    )


def _count(text: str) -> int:
    value = _count_or_none(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {text!r}")
    return value


def _count_or_none(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer, 0 or more, found {text!r}")
    return int(text)


def probability(text: str) -> float:
    """Of a flag's text; raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"expected seconds, above 0 and at most {_MOST_SECONDS}, found {text!r}")
    return value


def _count_of(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _stopping(stop: threading.Event) -> contextlib.AbstractContextManager[None]:
    """The first Ctrl-C asks for an end, which comes within one step of the model; the second one does not wait."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(130)  # every file is published whole, so nothing is half-written
        stop.set()

    return handled(handle, signal.SIGINT, signal.SIGTERM)
