"""``ocr-onnx eval``: a model reads a published benchmark, and its text is scored by the benchmark's rules."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.model_errors import InvalidInput

from .command_errors import CommandFailed, UsageError
from .compare import require_packages
from .progress import say

DESCRIPTION = """Read a copy of a published benchmark, and score what was read.

omnidocbench (OmniDocBench.json and images/): edit distances of text, formulas and reading order, TEDS of tables,
paired by the benchmark's simple_match. olmocr-bench (*.jsonl and pdfs/): its unit tests, run by its authors' package.
What was read lies in OUT/pages, in the form that the benchmarks' own programs take, with OUT/scores.json beside it; a
run that was ended goes on when it is started again. --read takes flags of ocr-onnx read."""

EXAMPLES = """examples:
  ocr-onnx eval --dataset omnidocbench OmniDocBench/ -o scores/ --read "--model paddleocr-vl --device cuda"
  ocr-onnx eval --dataset olmocr-bench olmOCR-bench/ -o scores/ --read "--server http://localhost:8000"
  ocr-onnx eval --dataset omnidocbench OmniDocBench/ --predictions their-markdown/"""

DATASETS = ("omnidocbench", "olmocr-bench")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("--dataset", choices=DATASETS, required=True, help="which benchmark DIR is a copy of")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the copy of the benchmark")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", default=None, help="folder for pages and scores")
    parser.add_argument(
        "--predictions", type=Path, metavar="FOLDER", default=None, help="score these results, and read nothing"
    )
    parser.add_argument("--limit", type=int, metavar="N", default=None, help="the first N pages or documents only")
    parser.add_argument("--json", action="store_true", default=False, help="all scores as JSON, for programs")
    parser.add_argument(
        "--read", type=shlex.split, metavar="FLAGS", default=[], help='of ocr-onnx read, such as "--model tiny-ocr"'
    )


def run(given: Mapping[str, Any]) -> int:
    """Run the command. Returns 0, or the exit code of reading the pages."""
    require_packages()
    if (given["predictions"] is None) == (given["output"] is None):
        raise UsageError("give either -o, a folder for what is read, or --predictions, results that are there already")
    if given["limit"] is not None and given["limit"] < 1:
        raise UsageError(f"--limit is {given['limit']}; it must be at least 1")
    try:
        evaluate = _omnidocbench if given["dataset"] == "omnidocbench" else _olmocr_bench
        code, scores = evaluate(given)
    except InvalidInput as error:
        raise CommandFailed(str(error)) from error
    text = json.dumps(scores, ensure_ascii=False, indent=2) + "\n"
    if given["output"] is not None:
        (given["output"] / "scores.json").write_text(text, encoding="utf-8")
    if given["json"]:
        sys.stdout.write(text)
    else:
        _tell(scores["summary"])
    return code


def _omnidocbench(given: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    from server.scores import omnidocbench

    pages = omnidocbench.load_truth(given["folder"])[: given["limit"]]
    images = [given["folder"] / "images" / page.image for page in pages]
    code, found = _readings(given, images, "md")
    scores = {}
    for page in pages:
        read = found.get(page.image) or found.get(Path(page.image).stem)
        if read is None:
            say(f"warning: {page.image} was not read; its scores are those of an empty page")
        scores[page.image] = omnidocbench.score_page(page, "\n\n".join(read or ()))
    return code, {
        "dataset": given["dataset"],
        "matching": "simple_match",
        "summary": omnidocbench.summary(scores.values()),
        "pages": {
            name: {"text": one.text, "formula": one.formula, "order": one.order, "teds": [t.teds for t in one.tables]}
            for name, one in scores.items()
        },
    }


def _olmocr_bench(given: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    from server.scores import olmocr_bench

    folder = olmocr_bench.data_folder(given["folder"])
    cases = olmocr_bench.load_cases(folder)
    documents = sorted({case.document for case in cases})[: given["limit"]]
    code, found = _readings(given, [folder / "pdfs" / name for name in documents], "json", folder / "pdfs")
    pages: dict[tuple[str, int], str] = {}
    for name in documents:
        read = found.get(name) or found.get(str(Path(name).with_suffix("")))
        if read is None:
            say(f"warning: {name} was not read; its tests fail")
        pages.update({(name, number): text for number, text in enumerate(read or (), 1)})
    chosen = [case for case in cases if case.document in set(documents)]
    summary = olmocr_bench.summary(chosen, pages)
    failed = summary.pop("failed")
    return code, {"dataset": given["dataset"], "summary": summary, "failed": failed}


def _readings(
    given: Mapping[str, Any], files: Sequence[Path], form: str, root: Path | None = None
) -> tuple[int, dict[str, tuple[str, ...]]]:
    """The pages of each document by its name, read now unless they are there; and the exit code of reading."""
    from server.scores.results import find_readings, load_reading

    code, place = 0, given["predictions"]
    if place is None:
        if missing := [file for file in files if not file.is_file()]:
            raise InvalidInput(f"{missing[0]} is missing, and {len(missing) - 1} more of the benchmark's files")
        place = given["output"] / "pages"
        place.mkdir(parents=True, exist_ok=True)
        code = _read([str(file) for file in files], place, form, given["read"])
    readings = find_readings(place)
    return code, {name: load_reading(file).pages for name, file in readings.items()}


def _read(files: Sequence[str], place: Path, form: str, flags: Sequence[str]) -> int:
    from .main import main

    resume = [] if "--force" in flags else ["--resume"]
    code = main(["read", *files, "-o", f"{place}/", "--format", form, *resume, *flags])
    if code not in (0, 1):  # 1: some pages failed, which lowers their scores
        raise CommandFailed("the pages could not be read")
    return code


def _tell(summary: Mapping[str, Any]) -> None:
    rows: dict[str, Any] = {}
    for name, value in summary.items():
        rows.update(value if isinstance(value, Mapping) else {name: value})
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {'-' if value is None else value}")
