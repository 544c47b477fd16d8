"""``ocr-onnx`` on a machine that has none of the HTTP server's packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command.conftest import environment, run
from tests.command.test_process import TINY, page

REFUSED = ("falcon", "prometheus_client", "waitress")

# Run by every Python process that finds it, so that the workers of the program miss the packages as well.
SITE_CUSTOMIZE = f"""
import importlib.abc, sys

class Refuser(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {REFUSED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuser())
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Variables of the environment with which no Python process finds the packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE_CUSTOMIZE)
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("name", REFUSED)
def test_the_packages_are_missing_indeed(bare: dict[str, str], tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], env=environment(tmp_path, **bare), capture_output=True, text=True
    )
    assert f"No module named '{name}'" in done.stderr


def test_the_server_needs_them(bare: dict[str, str], tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "--help", **bare)
    assert done.returncode != 0
    assert "No module named 'falcon'" in done.stderr


def test_a_document_is_read(bare: dict[str, str], tiny_home: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    page(7).save(path)
    done = run(tiny_home, "read", path, *TINY, "--format", "txt", **bare)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(tiny_home, "read", path, *TINY, "--format", "txt").stdout
    assert "Page 7" in done.stdout


def test_a_model_is_exported_and_read_with(bare: dict[str, str], tmp_path: Path) -> None:
    """``read`` exports what is not there yet."""
    path = tmp_path / "page.png"
    page(7).save(path)
    done = run(tmp_path / "home", "read", path, *TINY, "--format", "txt", **bare)
    assert done.returncode == 0, done.stderr
    assert "Page 7" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["models"],
        ["prune", "--dry-run"],
        *([name, "--help"] for name in ("read", "layout", "export", "compare", "eval", "doctor", "pack", "unpack")),
    ],
    ids=" ".join,
)
def test_every_other_command_runs(bare: dict[str, str], tmp_path: Path, arguments: list[str]) -> None:
    done = run(tmp_path, *arguments, **bare)
    assert done.returncode == 0, done.stderr


def test_another_server_can_be_read_with(bare: dict[str, str], tmp_path: Path) -> None:
    """The client needs no server of its own: it gets as far as to find nobody there."""
    path = tmp_path / "page.png"
    page(7).save(path)
    done = run(tmp_path, "read", path, "--server", "http://127.0.0.1:9", **bare)
    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stderr
    assert "No module named" not in done.stderr
