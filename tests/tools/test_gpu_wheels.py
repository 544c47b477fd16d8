"""What travels to a machine with a card: all that is required here, and there only what is missing."""

from __future__ import annotations

import re
import subprocess
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tools.gpu_wheels import PACKAGES, ROOT, unpack


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wheel(folder: Path, name: str, version: str = "1.2.3") -> None:
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/__init__.py", "")
        archive.writestr(f"{name}-{version}.dist-info/METADATA", f"Name: {name}\nVersion: {version}\n")


def test_every_requirement_and_what_tests_are_run_with_travels() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {plain(re.split(r"[>=\[; ]", one)[0]) for one in project["dependencies"]}
    there = {"numpy"}  # PyTorch brings it
    assert (required | {"pytest", "hypothesis"}) - there <= {plain(name) for name in PACKAGES}


def test_each_has_what_it_requires_itself() -> None:
    travels = {plain(name) for name in PACKAGES} | {"numpy"}
    for name in ("pytest", "hypothesis", "onnx", "onnxscript", "pydantic", "falcon", "jinja2", "pikepdf", "tokenizers"):
        wanted = [one for one in distribution(name).requires or [] if "extra ==" not in one and "win32" not in one]
        for one in wanted:
            needs, _, marker = one.partition(";")
            if "python_version <" in marker or "python_full_version <" in marker:
                continue
            assert plain(re.split(r"[<>=!~\[( ]", needs.strip())[0]) in travels, f"{name} wants {one}"


def test_only_what_a_machine_lacks_is_unpacked_and_once(tmp_path: Path) -> None:
    source, site = tmp_path / "wheels", tmp_path / "site"
    source.mkdir()
    for name in ("Nobody_Has.this", "numpy", "other_one"):
        wheel(source, name)
    assert unpack(source, site) == ["Nobody_Has.this", "other_one"]
    assert not (site / "numpy").exists()
    assert (site / "other_one" / "__init__.py").is_file()
    assert unpack(source, site) == []


def test_a_session_says_how_it_is_called(tmp_path: Path) -> None:
    script = ROOT / "tools" / "gpu_session.sh"
    subprocess.run(["bash", "-n", script], check=True)
    wrong = subprocess.run(["bash", script, "now", tmp_path / "out", tmp_path / "work"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "prepare, measure or all, and not now" in wrong.stderr


@pytest.mark.parametrize(
    "line", re.findall(r"^  +(?:\[.*\] \|\| )?part (\S+)", (ROOT / "tools/gpu_session.sh").read_text(), re.M)
)
def test_every_part_of_a_session_is_in_the_docs(line: str) -> None:
    page = (ROOT / "tools" / "docs" / "cuda.md").read_text()
    assert f"`{line.strip(chr(34)).replace('$dtype', 'f16')}`" in page
