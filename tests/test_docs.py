"""What the README and the pages in tools/docs say is true: links lead somewhere, examples run, flags exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.conftest import ServerProcess
from tests.web.pages import printed

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "tools" / "docs").rglob("*.md")),
    ROOT / "tools" / "train_tiny" / "README.md",
]
PROGRAMS = {"ocr-onnx": "server.command", "ocr-onnx-serve": "server", "ocr-onnx-export": "export"}


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"))


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:|data:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in _anchors(file)):
            broken.append(target)
    assert not broken


def test_the_index_has_every_page() -> None:
    folder = ROOT / "tools" / "docs"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [
        page.name for page in folder.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index
    ] == []


def test_a_newcomer_reads_the_readme_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_python_examples_are_python(page: Path) -> None:
    for block in _blocks(page, "python"):
        compile(block, _name(page), "exec")


def _commands(page: Path) -> Iterator[list[str]]:
    """Every command line of ours in a page's shell examples, as words."""
    for block in _blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\||&&|;", line.partition(" #")[0]):
                try:
                    words = shlex.split(part)
                except ValueError:  # half of a quoted text with a bar in it
                    continue
                while words and re.match(r"\w+=", words[0]):
                    words.pop(0)
                if (words and words[0] in PROGRAMS) or (
                    words[:2] == ["python", "-m"] and words[2].startswith(("tools.", "export", "server"))
                ):
                    yield words


# Prints what commands, given as lists of a module and its arguments, print. One process: each would import torch again.
_PRINTED = """
import contextlib, io, json, runpy, sys
texts = []
for module, *arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    sys.argv = [module, *arguments]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    texts.append(said.getvalue())
print(json.dumps(texts))
"""


def _printed_by(commands: list[tuple[str, ...]]) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", _PRINTED, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    texts: list[str] = json.loads(run.stdout)
    return texts


def test_every_flag_in_the_examples_exists() -> None:
    examples = []
    for page in PAGES:
        for words in _commands(page):
            module, rest = (words[2], words[3:]) if words[0] == "python" else (PROGRAMS[words[0]], words[1:])
            verbs = [word for word in rest[:1] if re.fullmatch(r"[a-z][a-z-]*", word)]
            flags = [word.partition("=")[0] for word in rest if re.match(r"--[a-z]", word)]
            examples.append((f"{_name(page)}: {shlex.join(words)}", {(module, *verbs), (module,)}, flags))
    programs = sorted(set().union(*(programs for _, programs, _ in examples)))
    helps = dict(zip(programs, _printed_by([(*program, "--help") for program in programs]), strict=True))
    assert all(helps.values())
    unknown = []
    for example, programs_of_it, flags in examples:
        text = "".join(helps[program] for program in programs_of_it)
        unknown += [f"{example}: {flag}" for flag in flags if flag not in text]
    assert not unknown


def test_the_readmes_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's against a server with a scripted model, the runtime's with the built-in one."""
    printed().save(tmp_path / "page.png")
    server = ServerProcess([], tmp_path, "tests.web.web_server")
    try:
        env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        env |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "own"), "XDG_CONFIG_HOME": str(tmp_path)}
        subprocess.run([sys.executable, "-m", "export", "tiny-ocr"], cwd=ROOT, env=env, check=True, capture_output=True)
        outputs = []
        for block in _blocks(ROOT / "README.md", "python"):
            code = block.replace("http://127.0.0.1:8000", server.url)
            run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr
            outputs.append(run.stdout)
    finally:
        server.kill()
    assert "# Annual report" in outputs[0]
    assert "Invoice 2041" in outputs[1]
