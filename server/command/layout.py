"""``ocr-onnx layout``: places of the parts of pages, in reading order. Inputs and outputs are as in ``read``."""

from __future__ import annotations

import argparse
import hashlib
import threading
import time
from collections.abc import Mapping
from typing import Any

from PIL import Image

from models.arguments import add_config_flags
from models.blocks import Block, kind_of
from models.grounding import Box
from models.layout.rules import DetectionRules
from models.manifest import FILE_NAME
from models.model_errors import ManifestError
from runtime.documents import DEFAULT_DPI, DPI_RANGE, DrawnPages
from server import flags

from . import read
from .command_errors import CommandFailed, Interrupted, PageFailed, UsageError
from .progress import PageWork
from .read_flags import probability
from .readers import Reader, Reading

DESCRIPTION = """\
Find the parts of pages (titles, text, tables, formulas, pictures ...), with a layout detector alone: labels, boxes in
pixels and scores as JSON, in reading order. Nothing is read. Documents are those of ocr-onnx read.
"""
EXAMPLES = """\
examples:
  ocr-onnx layout page.png                            JSON to standard output
  ocr-onnx layout report.pdf -o out --overlay         out/report.json, and its pages with their boxes in out/overlays/
  ocr-onnx layout scans/ -o out --detector v2 --resume
  ocr-onnx layout page.png --min-score 0.6 -o page.json

A detector is exported first, once: ocr-onnx export pp-doclayout-v3
exit code: 0 all pages were looked at; 1 some failed or were left; 2 the command line cannot be carried out; 130
interrupted
"""

_FORMATS = ("json", "jsonl")
_AT_ONCE = 2  # one page is drawn and prepared while the other is in the detector


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of ``layout``."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="file, folder, quoted pattern, or - for stdin")
    parser.add_argument("-o", "--output", metavar="OUT", help="folder for the results, or a file that ends in .json")
    parser.add_argument("--format", metavar="LIST", type=_formats, help="json, jsonl, or both (default: json)")
    parser.add_argument("--overlay", action="store_true", help="write each page with its boxes drawn, to overlays/")
    parser.add_argument("--detector", metavar="v2|v3|DIR", default="v3", help="which one, or the folder of its export")
    parser.add_argument(
        "--min-score", type=probability, metavar="P", help="least score of a box, 0 to 1, whatever its label is"
    )
    parser.add_argument("--pages", metavar="LIST", help="pages of each document, such as 1-5,9 or 12-")
    parser.add_argument(
        "--dpi", type=int, metavar="N",
        help=f"dots per inch at which the pages of a PDF are drawn, {DPI_RANGE[0]} to {DPI_RANGE[1]} (default: "
        f"{DEFAULT_DPI})",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace result files that this program has not made")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run into OUT has found")
    parser.add_argument("--retry-failed", action="store_true", help="look once more at the pages that failed")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary; errors only")
    machine = parser.add_argument_group("machine")
    flags.add_device_flag(machine)
    flags.add_server_flags(machine, "threads", "max_image_megapixels", "page_timeout")
    add_config_flags(machine)


def run(given: Mapping[str, Any]) -> int:
    """Run the command. Returns 0, or 1 when a page failed.

    Raises
    ------
    UsageError, CommandFailed, Interrupted
        see the exit codes in EXAMPLES.
    """
    unsaid = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    read.add_arguments(unsaid)
    return read.run({**vars(unsaid.parse_args(["-"])), **given}, _Layout)


class _Layout(read.ReadCommand):
    """``read`` with a reader that finds parts and reads no text."""

    default_format = "json"

    def __init__(self, given: Mapping[str, Any]) -> None:
        """See ``ReadCommand``; also refuses formats without boxes."""
        super().__init__(given)
        if others := set(self._target.formats) - set(_FORMATS):
            raise UsageError(f"boxes are written as {' or '.join(_FORMATS)}, and -o asks for {others.pop()}")

    def _reader(self) -> Reader:
        return DetectorReader(
            self._given["detector"], self._options.device, self._options.threads or None, self._given.get("min_score"),
            self._stop,
        )  # fmt: skip


class DetectorReader:
    """See ``readers.Reader``: finds the parts of pages, with empty texts."""

    joint = False

    def __init__(
        self, detector: str, device: str, threads: int | None, min_score: float | None, stop: threading.Event
    ) -> None:
        """Load nothing yet.

        Raises
        ------
        CommandFailed
            when there is no such export; the message has the command that makes one.
        ConfigError
            for a name that means no detector.
        """
        from runtime.layout import LayoutModel  # needs ONNX Runtime, and seconds to import it
        from runtime.layout.locate import detector_folder

        self._stop = stop
        try:
            folder = detector_folder(detector)
            self._model = LayoutModel.open(folder, device, threads)
        except ManifestError as error:
            raise CommandFailed(str(error)) from error
        rules = self._model.manifest.rules
        if min_score is not None:
            rules = rules.model_copy(update={"threshold": min_score, "thresholds": {}, "keep_at_threshold": True})
        self._rules: DetectionRules = rules
        self._folder = folder

    def identity(self) -> str:
        digest = hashlib.sha256((self._folder / FILE_NAME).read_bytes())
        digest.update(repr(self.describe()).encode())
        return digest.hexdigest()

    def seen_pixels(self) -> int | None:
        return None

    def describe(self) -> dict[str, object]:
        rules = self._rules.model_dump(mode="json")
        return {
            "model": self._model.manifest.id,
            "settings": {name: sorted(value) if isinstance(value, list) else value for name, value in rules.items()},
        }

    def start(self) -> int:
        return _AT_ONCE

    def read(self, page: Image.Image, work: PageWork | None = None) -> Reading:
        if self._stop.is_set():
            raise Interrupted
        if work is not None:
            work.stage = "layout"
        started = time.monotonic()
        found = self._model.detect(page, self._rules)
        places = [(int(box[0]), int(box[1]), int(box[2]), int(box[3])) for box in (one.box for one in found)]
        return Reading(
            "",
            tuple(Box(one.label, "", place) for one, place in zip(found, places, strict=True)),
            timings={"layout": round(time.monotonic() - started, 4)},
            blocks=tuple(
                Block(kind_of(one.label), "", place, one.label, round(one.score, 4))
                for one, place in zip(found, places, strict=True)
            ),
        )

    def read_together(self, pages: DrawnPages, work: PageWork | None = None) -> list[Reading | PageFailed]:
        raise NotImplementedError("pages are looked at one by one")

    def close(self) -> None:
        self._model.close()


def _formats(text: str) -> list[str]:
    formats = list(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    if unknown := [form for form in formats if form not in _FORMATS]:
        raise argparse.ArgumentTypeError(f"expected json, jsonl or both with a comma between, found {unknown[0]!r}")
    return formats
