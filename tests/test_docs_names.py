"""Files, modules, classes, functions, flags and variables of this project that the pages name are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("export", "models", "runtime", "server", "tests", "tools")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "tools").rglob("*.md"))]
# CHANGELOG.md tells of what was; tools/docs/models has notes on the publishers' own files.
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md" and page.parent.name != "models"]
# These name operators of ONNX, and classes of other projects.
OF_OURS = [page for page in PAGES if page.name not in ("onnxruntime.md", "style.md")]
_IN_BACKTICKS = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(rf"(?:{'|'.join(ROOMS)})/[\w./*-]*")
_CLASS = re.compile(r"[A-Z][a-z0-9]+(?:[A-Z][a-z0-9]+)+(?:\.\w+)?")
_SETTING = re.compile(r"--[a-z][a-z-]+|OCR_ONNX_[A-Z_]+|ocr_[a-z_]+")  # a flag, a variable, a metric
_OF_PYTEST = frozenset({"--pdb"})
_DOTTED = re.compile(rf"(?:{'|'.join(ROOMS)})(?:\.\w+)+")


def _named(text: str) -> set[str]:
    """Paths and dotted names in backticks, and dotted names in blocks, whose diagrams have no backticks."""
    blocks = re.findall(r"(?ms)^```\w*\n(.*?)^```", text)
    prose = re.sub(r"(?ms)^```.*?^```", "", text)
    found = set()
    for quoted in _IN_BACKTICKS.findall(prose):
        words = quoted.split() if quoted.startswith(("python", ".venv")) else [quoted]
        for word in words:
            word = word.partition("(")[0].partition(":")[0]
            if "<" not in word and (_PATH.fullmatch(word) or _DOTTED.fullmatch(word)):
                found.add(word)
    for block in blocks:
        found |= {one for one in re.findall(rf"(?<![\w./[-]){_DOTTED.pattern}", block) if not one.endswith(".md")}
    return found


def _classes(text: str) -> set[str]:
    """Names of classes, with a member where one is named: in backticks, and in diagrams as ``Class.member``."""
    prose = re.sub(r"(?ms)^```.*?^```", "", text)
    quoted = {one.partition("(")[0] for one in _IN_BACKTICKS.findall(prose)}
    diagrams = "\n".join(re.findall(r"(?ms)^```\n(.*?)^```", text))
    drawn = {one for one in re.findall(rf"(?<![\w.]){_CLASS.pattern}", diagrams) if "." in one}
    return drawn | {one for one in quoted if _CLASS.fullmatch(one) and not one.endswith(".json")}


def _is_there(name: str) -> bool:
    if "/" in name:
        return any(ROOT.glob(name.rstrip("/"))) if "*" in name else (ROOT / name).exists()
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:end])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if place.is_dir() and end == len(parts):
            return True
        if file.exists():
            return _has(file, parts[end:])
    return False


def _has(file: Path, names: list[str]) -> bool:
    return not names or ".".join(names) in _defined(file)


@cache
def _defined(file: Path) -> frozenset[str]:
    """What a module defines or imports, with the members of its classes as ``Class.member``."""
    found: set[str] = set()
    _add(ast.parse(file.read_text(encoding="utf-8")).body, "", found)
    return frozenset(found)


def _add(body: list[ast.stmt], prefix: str, found: set[str]) -> None:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                _add(node.body, f"{prefix}{node.name}.", found)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {prefix + (one.asname or one.name) for one in node.names}
        elif isinstance(node, ast.Assign):
            found |= {prefix + one.id for one in node.targets if isinstance(one, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(prefix + node.target.id)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_is_there(page: Path) -> None:
    missing = sorted(name for name in _named(page.read_text(encoding="utf-8")) if not _is_there(name))
    assert missing == []


@pytest.mark.parametrize("page", OF_OURS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_classes_that_a_page_names_are_there(page: Path) -> None:
    ours = frozenset().union(*(_defined(file) for room in ROOMS for file in (ROOT / room).rglob("*.py")))
    assert sorted(_classes(page.read_text(encoding="utf-8")) - ours) == []


def _settings(text: str) -> set[str]:
    """Flags, environment variables and metrics that begin what stands in backticks."""
    found = (_SETTING.match(quoted) for quoted in _IN_BACKTICKS.findall(re.sub(r"(?ms)^```.*?^```", "", text)))
    return {one[0] for one in found if one} - _OF_PYTEST


def _spellings(named: str) -> set[str]:
    """As the code has it: flags are made from settings (``max_tiles``), lists (``api_keys``), switches (``web``)."""
    setting = named.lstrip("-").replace("-", "_")
    return {named, setting, f"{setting}s", setting.removeprefix("no_")}


@cache
def _words_of_the_code() -> frozenset[str]:
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*.py") if file != Path(__file__)]
    files += [ROOT / "tools" / "dev", *(ROOT / "tools" / "docker").glob("*.y*ml")]
    return frozenset(word for file in files for word in re.findall(r"[\w-]+", file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", OF_OURS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_flags_variables_and_metrics_that_a_page_names_are_in_the_code(page: Path) -> None:
    named = _settings(page.read_text(encoding="utf-8"))
    assert sorted(one for one in named if not _spellings(one) & _words_of_the_code()) == []


def test_settings_are_found_in_prose() -> None:
    text = "`--max-tiles 6`, `OCR_ONNX_CACHE`, `ocr_held`, `max_tiles` and\n```\n`--not-this`\n```\n"
    assert _settings(text) == {"--max-tiles", "OCR_ONNX_CACHE", "ocr_held"}
    assert not _spellings("--max-such-thing") & _words_of_the_code()


def test_names_are_found_in_prose_and_in_diagrams() -> None:
    text = "Read `models/page.py`, `runtime.engine.Engine` and\n```\nexport.hub ─> export.check\n```\n"
    assert _named(text) == {"models/page.py", "runtime.engine.Engine", "export.hub", "export.check"}
    assert _classes("A `PageFamily` and\n```\nTextModel.submit\n```\n") == {"PageFamily", "TextModel.submit"}


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("runtime/engine.py", True),
        ("runtime/engine_of_old.py", False),
        ("runtime.engine.Engine.submit", True),
        ("runtime.engine.Engine.resubmit", False),
        ("runtime.Motor", False),
        ("tests/runtime/test_eng*.py", True),
        ("tests/runtime/test_motor*.py", False),
    ],
)
def test_a_name_that_is_not_there_is_noticed(name: str, there: bool) -> None:
    assert _is_there(name) is there
