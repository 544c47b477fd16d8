"""Devices: which execution provider serves ``cpu``, ``cuda``, ``coreml`` or ``auto``, and how sessions are made on it.

The only module that imports ONNX Runtime; others import ``ort`` from here. A device that was asked for and is missing
is an error that names the reason and the remedy, never a silent fall-back to the CPU.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from models.manifest import Graph, Manifest, Provider
from models.model_errors import ManifestError
from models.processor import session_entries

from .gpu import card_count
from .machine import default_threads, step_back
from .recording import RECORDING
from .runtime_errors import RuntimeUnavailable

try:
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
except ImportError as error:
    raise RuntimeUnavailable(
        f"ONNX Runtime is not installed ({error}); install it with: pip install 'ocr-onnx[cpu]' "
        "(or 'ocr-onnx[cuda]' for an NVIDIA GPU)"
    ) from error

__all__ = ["DEVICE_NAMES", "Device", "DeviceName", "find_device", "ort"]

DeviceName = Literal["cpu", "cuda", "coreml"]
_DEVICES: dict[str, DeviceName] = {"cpu": "cpu", "cuda": "cuda", "coreml": "coreml", "metal": "coreml"}
DEVICE_NAMES = (*_DEVICES, "auto")

# By default the CPU's 4-bit QMoE kernel computes in float. Int8 is a quarter faster, and must be chosen before a
# session is made.
os.environ.setdefault("ORT_QMOE_CPU_QNBIT_GEMM", "int8")

# Niceness of the threads of the CPU's vision graph, so that decoding goes first. While views are encoded, decoding gets
# two thirds of the processors; with equal priority it got half, and waited at every operator for its slower threads: a
# third of the pace.
ENCODER_NICENESS = 3

# ONNX Runtime's errors that are due to a file, not to the device.
_FAULTY_FILE = (ort_state.InvalidGraph, ort_state.InvalidProtobuf, ort_state.NoSuchFile, ort_state.NotImplemented)

# 0 turns off the recording of decode steps as CUDA graphs. Recorded steps are exact and, with one row, five times as
# fast.
CUDA_GRAPHS = "OCR_ONNX_CUDA_GRAPHS"

_EXECUTION_PROVIDER: dict[DeviceName, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}


@dataclass(frozen=True)
class Device:
    """Where a model runs.

    graph : which of an export's graphs the provider takes.
    memory : ONNX Runtime's name for the memory of the KV cache.
    """

    name: DeviceName
    threads: int  # CPU threads of one operator; 0: one for each physical core
    replays: bool = False  # decode steps are CUDA graphs: recorded once, then replayed
    picks: bool = False  # the device picks candidates, since whole rows of logits are slow to fetch
    resident: bool = False  # image features and prompt embeddings stay on the device up to the prefill
    index: int = 0  # of the GPU

    @property
    def graph(self) -> Provider:
        return "cuda" if self.name == "cuda" else "cpu"

    @property
    def label(self) -> str:
        """The device's name in the log."""
        return f"cuda:{self.index}" if self.name == "cuda" else self.name

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the execution provider."""
        return _EXECUTION_PROVIDER[self.name]

    @property
    def memory(self) -> str:
        return "cuda" if self.name == "cuda" else "cpu"

    def require(self, folder: Path, manifest: Manifest) -> None:
        """Check that an export has graphs for this device, and that the device computes them right.

        Raises
        ------
        RuntimeUnavailable
            with the command that makes such an export.
        """
        again = f"ocr-onnx export {manifest.id} --dtype"
        if self.graph not in manifest.decoder.files:
            dtype = f"{manifest.dtype} --force" if self.graph == "cuda" else "q8"
            raise RuntimeUnavailable(
                f"the {manifest.dtype} export in {folder} has no graph for {self.name}; make one with: {again} {dtype}"
            )
        if manifest.outdated_on(self.graph):
            raise RuntimeUnavailable(
                f"the {manifest.dtype} export in {folder} is of an older version, whose experts give noise on "
                f"{self.name}; make it anew with: {again} {manifest.dtype} --force, or use --device cpu"
            )

    def session(
        self, folder: Path, graph: Graph, *, encoder: bool = False, replays: bool = False, keeps: bool = True
    ) -> ort.InferenceSession:
        """Open one graph of an export.

        replays : a graph that runs many times with the same shapes and addresses; each run's options name its recording
        (see ``runtime.decoder``).

        keeps : the session keeps a run's CPU memory for the next run; False: the memory goes back to the system.

        encoder : a vision graph. CoreML runs vision graphs only, as it has none of the decoder's operators.

        Raises
        ------
        RuntimeUnavailable
            when the export has no graph for this device, or the provider refuses to start.
        ManifestError
            when ONNX Runtime cannot load the graph.
        """
        if self.graph not in graph.files:
            raise RuntimeUnavailable(
                f"the export in {folder} has no graph for {self.name}; export another dtype, or take another device"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = keeps
        for key, value in session_entries().items():
            options.add_session_config_entry(key, value)
        if encoder and self.name == "cpu":
            # Threads of the vision graph would spin after every pass, and take a third of the decoder's pace.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = self.name if encoder or self.name != "coreml" else "cpu"
        file = folder / graph.files[self.graph]
        try:
            provider = (_EXECUTION_PROVIDER[wanted], _options(wanted, self.index, replays=replays and self.replays))
            start = partial(ort.InferenceSession, file, options, providers=[provider])
            session = _started_behind(start) if encoder and self.name == "cpu" else start()
        except Exception as error:  # ONNX Runtime raises several unrelated classes
            if wanted == "cuda" and not isinstance(error, _FAULTY_FILE):
                raise RuntimeUnavailable(
                    f"{file} cannot be loaded to the GPU: {error}; if its memory is full, free some, lower --slots, or "
                    "take --dtype q4"
                ) from error
            raise ManifestError(
                f"ONNX Runtime {ort.__version__} cannot load {file}: {error}; export the model again with --force"
            ) from error
        if session.get_providers()[0] != _EXECUTION_PROVIDER[wanted]:
            raise RuntimeUnavailable(
                f"ONNX Runtime has the {wanted} provider but could not start it (driver or NVIDIA libraries missing?); "
                f"{_remedy(wanted)}, or use --device cpu"
            )
        return session

    def running(self, *, first: bool = False) -> AbstractContextManager[None]:
        """The context of every run on the device, so that no run disturbs a recording.

        first : this run records a step, if the device records steps; then nothing else runs beside it.
        """
        if not self.replays:
            return nullcontext()
        return RECORDING.record() if first else RECORDING.run()

    def small_session(self, model: bytes) -> ort.InferenceSession:
        """A session for one of the runtime's own graphs (``runtime.small_graphs``)."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        name: DeviceName = "cuda" if self.name == "cuda" else "cpu"
        return ort.InferenceSession(model, options, providers=[(_EXECUTION_PROVIDER[name], _options(name, self.index))])


def step_behind() -> None:
    """Lower the calling thread's priority, if it runs the CPU's vision graph; see ``ENCODER_NICENESS``."""
    step_back(ENCODER_NICENESS)


def _started_behind(start: Callable[[], ort.InferenceSession]) -> ort.InferenceSession:
    """Make a session whose threads have a lower priority, which they inherit from the thread made here."""
    with ThreadPoolExecutor(1, initializer=step_behind) as threads:
        return threads.submit(start).result()


def find_device(name: str = "auto", threads: int | None = None) -> Device:
    """The device for a name that a user gave.

    ``auto`` takes the first of CUDA, CoreML and CPU that this installation has. ``metal`` means ``coreml``.

    Raises
    ------
    RuntimeUnavailable
        when the installed ONNX Runtime has no such provider; the message has the install command.
    ValueError
        for an unknown name.
    """
    whole, (name, _, card) = name, name.partition(":")
    if name not in DEVICE_NAMES or (card and (name != "cuda" or not (card.isdigit() or card == "all"))):
        raise ValueError(f"device {whole!r} is unknown; use one of {', '.join(DEVICE_NAMES)}, cuda:1, cuda:all")
    if name in ("cuda", "auto"):
        load_cuda_libraries()
    available = ort.get_available_providers()
    if name == "auto":
        preferred: tuple[DeviceName, ...] = ("cuda", "coreml", "cpu")
        chosen = next(device for device in preferred if _EXECUTION_PROVIDER[device] in available)
    else:
        chosen = _DEVICES[name]
    if _EXECUTION_PROVIDER[chosen] not in available:
        raise RuntimeUnavailable(
            f"--device {name} needs ONNX Runtime's {_EXECUTION_PROVIDER[chosen]}; the installed onnxruntime "
            f"{ort.__version__} has {', '.join(available)}. {_remedy(chosen)}"
        )
    threads = threads or default_threads()
    if chosen != "cuda":
        return Device(chosen, threads)
    index, cards = int(card) if card.isdigit() else 0, card_count()
    if index >= cards:
        raise RuntimeUnavailable(
            f"--device {whole} asks for card {index}, and this machine has {cards}, which count from 0 (see nvidia-smi "
            "and CUDA_VISIBLE_DEVICES)"
        )
    return Device(chosen, threads, replays=os.environ.get(CUDA_GRAPHS) != "0", picks=True, resident=True, index=index)


def each_card(name: str) -> list[str]:
    """The devices that a name means: each card for ``cuda:all``, else the name itself."""
    if name != "cuda:all":
        return [name]
    load_cuda_libraries()
    return [f"cuda:{index}" for index in range(card_count())]


def load_cuda_libraries() -> None:
    """Load the NVIDIA libraries of the ``cuda`` extra; does nothing in a build without CUDA."""
    if _EXECUTION_PROVIDER["cuda"] in ort.get_available_providers():
        ort.preload_dlls()


def _options(device: DeviceName, index: int, *, replays: bool = False) -> dict[str, Any]:
    if device == "cuda":
        return {
            "device_id": str(index),
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search would take seconds for each new view size
            "do_copy_in_default_stream": "1",
            "enable_cuda_graph": "1" if replays else "0",
        }
    if device == "coreml":
        return {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"}
    return {}


def _remedy(device: DeviceName) -> str:
    if device == "cuda":
        if platform.system() == "Darwin":
            return "There is no CUDA on macOS: use --device coreml"
        # Both packages install the same module, so the CPU package has to be removed first.
        return "Install the CUDA build with: pip uninstall -y onnxruntime && pip install 'ocr-onnx[cuda]'"
    if device == "coreml":
        return "CoreML comes with macOS and pip install 'ocr-onnx[cpu]' there"
    return "Install it with: pip install 'ocr-onnx[cpu]'"
