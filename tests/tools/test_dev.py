"""``tools/dev`` with a .venv of stubs: what it runs, in which order, and what its status says."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.waiting import until

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(os.name == "nt" or BASH is None, reason="a program for bash")

# Each notes what it was called with; python's status is the half's of the tests, or that of all quick ones.
STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$LOG"
case "$(basename "$0") $*" in
ruff*) exit "${RUFF:-0}" ;;
mypy*) eval "${MYPY:-true}" ;;
*"--alone only"*) eval "${ALONE:-true}" ;;
*) eval "${SHARED:-true}" ;;
esac
"""


class Dev:
    """A checkout in which everything is installed; ``start`` and ``run`` call its ``tools/dev``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.log.touch()
        (folder / "tools").mkdir()
        shutil.copy(ROOT / "tools/dev", folder / "tools/dev")
        (folder / "pyproject.toml").write_text("a\n")
        (folder / "constraints.txt").write_text("b\n")
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / ".venv/installed").write_text("extra cpu\na\nb\n")
        for name in ("python", "ruff", "mypy"):
            (folder / ".venv/bin" / name).write_text(STUB)
            (folder / ".venv/bin" / name).chmod(0o755)

    def start(self, *arguments: str, **stubs: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OCR_ONNX")}
        return subprocess.Popen(
            ["bash", self.folder / "tools/dev", *arguments], env={**kept, "LOG": str(self.log), **stubs},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str, **stubs: str) -> tuple[int, str]:
        """The status and what was said."""
        process = self.start(*arguments, **stubs)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def called(self) -> list[str]:
        return self.log.read_text().splitlines()

    def halves(self) -> list[str]:
        """Which halves of the tests were run."""
        return ["alone" if "--alone only" in line else "shared" for line in self.called() if line.startswith("python")]


@pytest.fixture
def dev(tmp_path: Path) -> Dev:
    return Dev(tmp_path)


def test_lint_comes_first_and_the_tests_that_run_alone_before_the_others(dev: Dev) -> None:
    status, said = dev.run(
        "test", "-k", "one thing", ALONE="echo all alone", SHARED="echo all shared", MYPY="echo fine"
    )
    assert status == 0, said
    assert dev.called()[:2] == ["ruff check", "ruff format --check"]
    assert dev.halves() == ["alone", "shared"]
    assert all("-k one thing" in line for line in dev.called() if line.startswith("python"))
    assert "mypy " in dev.called()
    assert said.index("all alone") < said.index("fine") < said.index("all shared")


@pytest.mark.parametrize(
    ("alone", "shared", "whole"),
    [
        (0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1), (5, 0, 0), (0, 5, 0), (5, 1, 1), (1, 5, 1), (5, 5, 5),
        (0, 2, 2), (1, 3, 3),
    ],
)  # fmt: skip
def test_a_half_that_fails_or_has_no_test_keeps_the_other_from_nothing(
    dev: Dev, alone: int, shared: int, whole: int
) -> None:
    status, said = dev.run("test", ALONE=f"exit {alone}", SHARED=f"exit {shared}")
    assert status == whole, said
    assert dev.halves() == ["alone", "shared"]


@pytest.mark.parametrize("status", [2, 3, 4])
def test_nothing_follows_tests_that_were_interrupted_or_called_wrongly(dev: Dev, status: int) -> None:
    assert dev.run("test", ALONE=f"exit {status}")[0] == status
    assert dev.halves() == ["alone"]


def test_wrong_types_are_said_whole_and_end_the_run_before_the_shared_half(dev: Dev) -> None:
    status, said = dev.run("test", MYPY="echo a.py: wrong; echo b.py: wrong >&2; exit 1", ALONE="echo dots")
    assert status == 1
    assert said.index("dots") < said.index("a.py: wrong\nb.py: wrong\n")
    assert dev.halves() == ["alone"]


@pytest.mark.parametrize("command", ["test", "quick"])
def test_wrong_style_ends_the_run_before_anything_else(dev: Dev, command: str) -> None:
    assert dev.run(command, RUFF="1")[0] == 1
    assert dev.called() == ["ruff check"]


@pytest.mark.parametrize(
    ("tests", "types", "whole"), [(0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1), (5, 0, 5), (2, 0, 2)]
)
def test_quick_ones_fail_for_their_tests_and_for_types(dev: Dev, tests: int, types: int, whole: int) -> None:
    status, said = dev.run("quick", SHARED=f"exit {tests}", MYPY=f"echo what mypy says; exit {types}")
    assert status == whole, said
    assert ("what mypy says" in said) == (tests != 2)
    assert any(line.startswith("python -m pytest -m not slow ") for line in dev.called())


def test_coverage_runs_both_halves_without_types_and_reports_whatever_they_say(dev: Dev) -> None:
    assert dev.run("coverage", SHARED='[[ "$*" != *pytest* ]] || exit 1')[0] == 1
    assert dev.called()[0] == "python -m coverage erase"
    assert dev.called()[-1] == "python -m coverage report"
    assert dev.halves().count("alone") == 1
    assert "mypy " not in dev.called()


@pytest.mark.parametrize(
    ("last_word", "tests"),
    [("begun", "trap 'exit 2' INT; echo begun; while :; do sleep 0.05; done"), ("+ .venv/bin/mypy", "true")],
    ids=["while tests run", "while mypy is waited for"],
)
def test_ctrl_c_leaves_no_mypy_behind(dev: Dev, last_word: str, tests: str) -> None:
    running = dev.folder / "running"
    process = dev.start(
        "test", ALONE=tests, MYPY=f"echo $$ >{running}.new; mv {running}.new {running}; exec sleep 1000"
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) != f"{last_word}\n":
        assert line, "it has ended"
    until(running.exists)
    mypy = psutil.Process(int(running.read_text()))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    process.stdout.close()
    psutil.wait_procs([mypy], 30)
    assert not mypy.is_running()
    assert "shared" not in dev.halves()
