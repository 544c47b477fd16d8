"""What a borrowed machine with a card lacks for a session there: wheels, fetched here and unpacked there.

    python -m tools.gpu_wheels fetch .gpu/d                     # here: the pinned versions, for that machine's Python
    python3 tools/gpu_wheels.py unpack .gpu/d /tmp/site         # there: those that it does not have already

Fetched is what the tests and the exporter import beside PyTorch, transformers, NumPy and onnxruntime-gpu, which such a
machine has or gets another way (tools/docs/cuda.md). Unpacking needs nothing but Python.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PACKAGES = (
    "pytest", "iniconfig", "packaging", "pluggy", "pygments", "hypothesis", "sortedcontainers",  # tests
    "onnx", "onnx-ir", "onnxscript", "ml_dtypes", "safetensors", "tokenizers", "huggingface_hub", "tqdm", "protobuf",
    "falcon", "waitress", "pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions",
    "platformdirs", "tomli", "argcomplete", "filelock", "Jinja2", "MarkupSafe", "llguidance", "markdown-it-py", "mdurl",
    "pikepdf", "lxml", "Deprecated", "wrapt", "pillow", "prometheus_client", "psutil", "pypdfium2",
    "httpx", "httpcore", "h11", "anyio", "idna", "certifi", "sniffio",
)  # fmt: skip
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(35, 11, -1)] + ["manylinux2014_x86_64"]


def fetch(target: Path, python: str) -> None:
    """Download the wheels that constraints.txt pins.

    Raises
    ------
    subprocess.CalledProcessError
        when one cannot be had; pip has said which.
    """
    wanted = {_plain(name) for name in PACKAGES}
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if _plain(line) in wanted]
    target.mkdir(parents=True, exist_ok=True)
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:", "--python-version",
         python, *platforms, "--dest", str(target), *pinned],
        check=True,
    )  # fmt: skip
    size = sum(wheel.stat().st_size for wheel in target.glob("*.whl"))
    print(f"{len(pinned)} wheels, {size / 1e6:.0f} MB in {target}")


def unpack(source: Path, site: Path) -> list[str]:
    """Put the wheels that this machine has no distribution of into a folder for PYTHONPATH; returns their names."""
    there = {_plain(found.metadata["Name"]) for found in importlib.metadata.distributions() if found.metadata["Name"]}
    there |= {_plain(found.name) for found in site.glob("*.dist-info")}
    missing = []
    for wheel in sorted(source.glob("*.whl")):
        name = wheel.name.split("-", 1)[0]
        if _plain(name) not in there:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            missing.append(name)
    return missing


def _plain(name: str) -> str:
    """A distribution's name as registries compare it; of a pin or of a dist-info folder what stands in front."""
    return re.sub(r"[-_.]+", "-", re.split(r"==|-\d[^-]*\.dist-info$", name.strip())[0]).lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    here = commands.add_parser("fetch", help="download the wheels")
    here.add_argument("target", type=Path)
    here.add_argument("--python", default="3.12", help="the other machine's (default: %(default)s)")
    there = commands.add_parser("unpack", help="unpack those that are missing")
    there.add_argument("source", type=Path)
    there.add_argument("site", type=Path)
    given = parser.parse_args()
    if given.command == "fetch":
        fetch(given.target, given.python)
    else:
        print("unpacked:", ", ".join(unpack(given.source, given.site)) or "nothing, all is there")


if __name__ == "__main__":
    main()
