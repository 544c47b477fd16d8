"""The wheel, installed elsewhere, in a folder whose own files have the names of this project's packages."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from models import __version__

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands in a fresh environment that has the wheel, and other packages from this one."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pip", reason="the wheel is built and installed with pip")
    wheels, home = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed") / "venv"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [
        *pip,
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(wheels),
        str(copy_of_the_project(wheels)),
    ]
    made = subprocess.run(build, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (wheel,) = wheels.glob("*.whl")
    venv.create(home, with_pip=False)
    site = next((home / "lib").glob("python3*/site-packages"))
    (site / "others.pth").write_text(f"{Path(np.__file__).parents[1]}\n")  # its own .pth files are not followed
    install = [*pip, "--python", str(home / "bin" / "python"), "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return home / "bin"


def copy_of_the_project(folder: Path) -> Path:
    """What git has, so that no build folder is left in the checkout and none from there gets into the wheel."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )
    for name in listed:
        if name.startswith(("export/", "models/", "runtime/", "server/")) or "/" not in name:
            source, target = ROOT / name, folder / "project" / name
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
    return folder / "project"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder that hides every package of this project from who looks there first."""
    folder = tmp_path / "work"
    for name in ("models", "runtime"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise SystemExit('this is another program')\n")
    for name in ("server.py", "export.py"):
        (folder / name).write_text("raise SystemExit('this is another program')\n")
    page = Image.new("RGB", (256, 96), "white")
    ImageDraw.Draw(page).text((12, 30), "Hello 2026", fill="black", font=ImageFont.load_default(28))
    page.save(folder / "page.png")
    return folder


def run(hostile: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OCR_ONNX", "PYTHON"))}
    home = hostile.parent
    environment |= {"OCR_ONNX_CACHE": str(home / "cache"), "XDG_CONFIG_HOME": str(home / "config")}
    return subprocess.run(list(map(str, command)), cwd=hostile, env=environment, capture_output=True, text=True)


def test_every_command_works_beside_files_of_the_same_names(programs: Path, hostile: Path) -> None:
    commands = [
        (["ocr-onnx", "--version"], f"ocr-onnx {__version__}"),
        (["ocr-onnx", "export", "tiny-ocr"], "published"),
        (["ocr-onnx-export", "tiny-ocr", "--dtype", "q8"], "published"),
        (["ocr-onnx", "read", "page.png", "--model", "tiny-ocr", "--format", "txt"], "Hello 2026"),
        (["ocr-onnx", "models"], "exported: q8"),
        (["ocr-onnx", "doctor"], "nothing is broken"),
        (["ocr-onnx", "prune", "--dry-run"], "nothing to remove"),
        (["ocr-onnx", "serve", "--help"], "--cors-origin"),
        (["ocr-onnx-serve", "--help"], "--cors-origin"),
    ]
    for (name, *arguments), words in commands:
        done = run(hostile, programs / name, *arguments)
        assert done.returncode == 0, (name, arguments, done.stderr)
        assert words in done.stdout + done.stderr, (name, arguments)
        assert "another program" not in done.stdout + done.stderr


def test_a_model_that_is_not_exported_yet_is_exported_beside_such_files_too(programs: Path, hostile: Path) -> None:
    done = run(hostile, programs / "ocr-onnx", "read", "page.png", "--model", "tiny-ocr", "--format", "txt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Hello 2026"


def test_python_m_says_what_hides_it_instead_of_a_traceback(programs: Path, hostile: Path) -> None:
    python = programs / "python"
    for name in ("export.py", "server.py"):
        (hostile / name).unlink()
    for module, hidden in (("export", "models"), ("server", "models"), ("server.command", "models")):
        done = run(hostile, python, "-m", module, "--help")
        assert done.returncode == 1
        place = hostile / hidden
        assert done.stderr.startswith(f"error: {place} hides the package {hidden!r} of ocr-onnx; run `ocr-onnx")
        assert done.stderr.count("\n") == 1


def test_the_packages_say_their_version_and_that_they_are_typed(programs: Path, hostile: Path) -> None:
    code = (
        "import export, models, runtime, server\nfrom pathlib import Path\n"
        "for one in (export, models, runtime, server):\n"
        "    assert Path(one.__file__).with_name('py.typed').is_file(), one\n"
        "    print(one.__version__, Path(one.__file__).parents[1].name)\n"
    )
    done = run(hostile, programs / "python", "-P", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{__version__} site-packages"] * 4
