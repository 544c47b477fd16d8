"""``ocr-onnx doctor``: what this machine has for reading pages, what is missing, and the commands that mend it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import psutil
from PIL import Image, ImageDraw, ImageFont

from models.arguments import add_config_flags, read_config
from models.config import Config
from models.exporter import environment
from models.layout.detectors import DETECTORS
from models.model_errors import ConfigError, ManifestError
from models.paths import CACHE_VARIABLE, cache_dir
from runtime.documents.fonts import SCRIPTS, has_fontconfig, missing_scripts
from runtime.library.export_process import missing_for_export

from .exports import find_exports, find_leftovers, gigabytes

DESCRIPTION = (
    "Check Python, packages, execution providers, GPU, memory, disk, config.toml and exports, and read "
    "a line with tiny-ocr."
)
EXAMPLES = """\
examples:
  ocr-onnx doctor
  ocr-onnx doctor --quick       without reading a line with tiny-ocr, which exports it where it is not there
  ocr-onnx doctor --verify      read every file of every export and compare its hash

exit code: 0 when nothing is broken, 1 when something is
"""

State = Literal["ok", "note", "problem"]

_PACKAGES = ("numpy", "Pillow", "pypdfium2", "tokenizers", "falcon", "waitress", "pydantic", "filelock", "tqdm")
_LEAST_DISK = 1e9  # bytes; below this nothing can be exported
_WANTED_DISK = 15e9  # the largest export, DeepSeek-OCR in float32
TRIED, SAMPLE = "tiny-ocr", "Hello 2026"
_TRIAL_SECONDS = 300  # seconds for an export and a line of text on the slowest machine
_LEAST_MEMORY = 3e9  # bytes; DeepSeek-OCR in 4 bits


@dataclass(frozen=True)
class Check:
    """One check and its result."""

    name: str
    state: State
    found: str
    remedy: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", default=False, help="write one JSON object")
    parser.add_argument("--quick", action="store_true", default=False, help="do not try to read with tiny-ocr")
    parser.add_argument("--verify", action="store_true", default=False, help="compare the hashes of all exported files")
    add_config_flags(parser)


def run(given: Mapping[str, Any]) -> int:
    """Print all checks. Returns 1 when something is broken."""
    config, checked = _config(given)
    cache = config.cache_dir if config else cache_dir()
    checks = [
        *_python(),
        *_runtime(),
        *_gpu(),
        *_machine(cache),
        fonts(),
        checked,
        *_exporter(),
        *_exports(given["verify"], config, cache),
    ]
    if not given["quick"] and not any(check.state == "problem" for check in checks):
        checks.append(_reading(config))
    broken = any(check.state == "problem" for check in checks)
    if given["json"]:
        print(json.dumps({"ok": not broken, "checks": [asdict(check) for check in checks]}, indent=1))
        return int(broken)
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = {"ok": "ok  ", "note": "note", "problem": "!!  "}[check.state]
        print(f"{mark}  {check.name:<{width}}  {check.found}")
        if check.remedy:
            print(f"{'':{width + 8}}{check.remedy}")
    print("\nsomething is broken; the lines marked !! say how to mend it" if broken else "\nnothing is broken")
    return int(broken)


def _python() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}, {sys.executable}")
    found = {name: version_of(name) for name in _PACKAGES}
    missing = [name for name, number in found.items() if number is None]
    if missing:
        yield Check("packages", "problem", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    else:
        yield Check("packages", "ok", ", ".join(f"{name} {number}" for name, number in found.items()))


def _runtime() -> Iterator[Check]:
    builds = {name: number for name in ("onnxruntime", "onnxruntime-gpu") if (number := version_of(name))}
    if len(builds) == 2:
        yield Check(
            "onnxruntime", "problem", "onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'ocr-onnx[cpu]' (or [cuda])",
        )  # fmt: skip
        return
    from runtime.runtime_errors import RuntimeUnavailable

    try:
        from runtime.providers import find_device, ort
    except RuntimeUnavailable as error:
        yield Check("onnxruntime", "problem", str(error), "pip install 'ocr-onnx[cpu]'")
        return
    name = next(iter(builds), "onnxruntime")
    yield Check("onnxruntime", "ok", f"{name} {ort.__version__}: {', '.join(ort.get_available_providers())}")
    for device in ("cpu", "cuda", "coreml"):
        try:
            find_device(device)
            yield Check(f"--device {device}", "ok", "can be used")
        except RuntimeUnavailable as error:
            state: State = "problem" if device == "cuda" and nvidia_cards() else "note"
            yield Check(f"--device {device}", state, "not here", str(error) if state == "problem" else None)


def _gpu() -> Iterator[Check]:
    found = nvidia_cards()
    yield Check("gpu", "ok" if found else "note", "; ".join(found) if found else "no NVIDIA GPU was found")


def nvidia_cards() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()] if answer.returncode == 0 else []


def _machine(cache: Path) -> Iterator[Check]:
    memory = psutil.virtual_memory()
    cores = f"{psutil.cpu_count(logical=False) or '?'} cores, {os.cpu_count()} threads"
    small = memory.available < _LEAST_MEMORY
    yield Check(
        "machine", "note" if small else "ok",
        f"{platform.machine()}, {cores}, {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB memory free",
        "DeepSeek-OCR in 4 bits needs 3 GB; tiny-ocr runs in less" if small else None,
    )  # fmt: skip
    place = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        yield Check(
            "cache",
            "problem",
            f"{cache} cannot be written",
            f"make it writable, or name another place in {CACHE_VARIABLE}",
        )
    state: State = "problem" if free < _LEAST_DISK else "note" if free < _WANTED_DISK else "ok"
    remedy = "ocr-onnx prune removes exports; DeepSeek-OCR takes 2 (q4) to 13 GB (f32)" if state != "ok" else None
    yield Check("disk", state, f"{gigabytes(free)} free for the cache, {cache}", remedy)


def fonts() -> Check:
    """Check fonts for PDFs that do not embed theirs."""
    if not has_fontconfig():
        remedy = "apt-get install fontconfig" if sys.platform == "linux" else None  # other systems have other ways
        return Check("fonts", "note", "no fontconfig: fonts are chosen by their names alone", remedy)
    missing = missing_scripts()
    if not missing:
        return Check("fonts", "ok", f"there are some for all {len(SCRIPTS)} scripts that were looked for")
    names = ", ".join(script.name for script in missing)
    packages = " ".join(sorted({script.package for script in missing}))
    found = f"none for {names}: PDFs that do not hold theirs lose such text, and say so"
    return Check("fonts", "note", found, f"apt-get install {packages}")


def _config(given: Mapping[str, Any]) -> tuple[Config | None, Check]:
    try:
        config = read_config(given)
    except ConfigError as error:
        remedy = "mend that line, or move the file away to get a new one"
        return None, Check("config.toml", "problem", str(error), remedy)
    return config, Check("config.toml", "ok", f"{config.path}, active model {config.active}")


def _exporter() -> Iterator[Check]:
    missing = missing_for_export()
    if missing:
        found = f"not installed ({', '.join(missing)}): models that are exported already can be used"
        yield Check("exporter", "note", found, "pip install 'ocr-onnx[export]'")
    else:
        yield Check("exporter", "ok", "models can be exported here")


def _reading(config: Config | None) -> Check:
    """Read a drawn line with the built-in model, in a process of its own, which a failure may kill."""
    with tempfile.TemporaryDirectory(prefix="ocr-onnx-doctor-") as folder:
        picture = Path(folder) / "page.png"
        page = Image.new("RGB", (256, 96), "white")
        ImageDraw.Draw(page).text((12, 30), SAMPLE, fill="black", font=ImageFont.load_default(28))
        page.save(picture)
        program = [sys.executable, "-P", "-m", "server.command", "read", str(picture), "--model", TRIED]
        try:
            known = ["--config", str(config.path)] if config and config.path.is_file() else []
            tried = subprocess.run(
                [*program, *known, "--device", "cpu", "--format", "txt", "--max-new-tokens", "40", "--quiet"],
                capture_output=True, text=True, errors="replace", env=environment(), timeout=_TRIAL_SECONDS,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return Check("reading", "problem", f"{TRIED} did not read a line: {error}", f"ocr-onnx export {TRIED}")
    text = " ".join(tried.stdout.split())
    if tried.returncode or SAMPLE.split()[0].lower() not in text.lower():
        reason = (tried.stderr.strip().splitlines() or [f"the answer was {text!r}"])[-1]
        remedy = f"ocr-onnx export {TRIED} --force shows where it fails"
        return Check("reading", "problem", f"{TRIED} did not read a line: {reason.removeprefix('error: ')}", remedy)
    return Check("reading", "ok", f"{TRIED} read {text!r}")


def _exports(verify: bool, config: Config | None, cache: Path) -> Iterator[Check]:
    exports = find_exports(cache)
    known = [*(config.model_ids() if config else []), *DETECTORS]
    for export in exports:
        problem = export.problem
        if verify and export.manifest is not None:
            try:
                export.manifest.verify(export.folder)
            except ManifestError as error:
                problem = str(error)
        what = f"{export.folder}, {gigabytes(export.size)}"
        again = export.model_id in known and not export.replaced  # else the export's flags are unknown here
        dtype = "" if export.model_id in DETECTORS else f" --dtype {export.dtype}"
        export_again = f"ocr-onnx export {export.model_id}{dtype} --force, or " if again else ""
        remedy = f"{export_again}ocr-onnx prune{'' if export.problem else f' {export.model_id}'}"
        name = f"{export.model_id} {export.dtype}"
        yield Check(name, "problem", problem, remedy) if problem else Check(name, "ok", what)
    if not exports:
        yield Check("exports", "note", "no model is exported yet; the first use of one does it")
    if leftovers := find_leftovers(cache):
        yield Check("leftovers", "note", f"exports that did not end: {len(leftovers)}", "ocr-onnx prune")


def version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
