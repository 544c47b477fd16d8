"""Devices: which execution provider serves ``cpu``, ``cuda``, ``coreml`` or ``auto``, and how sessions are made on it.

The one place that imports ONNX Runtime; the other modules take it from here. A device that was asked for and is not
there is an error with the reason and the command that mends it, never a silent fall back to the CPU.
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

# The CPU's 4-bit QMoE kernel computes in float unless told so before a session is made; int8 is a quarter faster.
os.environ.setdefault("ORT_QMOE_CPU_QNBIT_GEMM", "int8")

# Steps by which the threads of the CPU's vision graph let the decoder's go first: beside views a stream then has two
# thirds of the processors, where it had half and, waiting for its slower half at every operator, a third of its pace.
ENCODER_NICENESS = 3

# What ONNX Runtime raises because of a file, not of the device.
_FAULTY_FILE = (ort_state.InvalidGraph, ort_state.InvalidProtobuf, ort_state.NoSuchFile, ort_state.NotImplemented)

# Set to 0, decode steps are not recorded as CUDA graphs. Recorded they are right and, at one row, five times as fast.
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
    memory : ONNX Runtime's name of the memory that the KV cache lives in.
    """

    name: DeviceName
    threads: int  # of one operator on the CPU; 0: one for each physical core
    replays: bool = False  # decode steps as CUDA graphs: recorded once, then replayed
    picks: bool = False  # the device picks each row's candidates, since whole rows of logits are slow to fetch
    resident: bool = False  # features of images stay there up to the prefill, and embeddings of prompts with them
    index: int = 0  # of the GPU

    @property
    def graph(self) -> Provider:
        return "cuda" if self.name == "cuda" else "cpu"

    @property
    def label(self) -> str:
        """For the log."""
        return f"cuda:{self.index}" if self.name == "cuda" else self.name

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the execution provider."""
        return _EXECUTION_PROVIDER[self.name]

    @property
    def memory(self) -> str:
        return "cuda" if self.name == "cuda" else "cpu"

    def require(self, folder: Path, manifest: Manifest) -> None:
        """Check that an export has graphs for this device, and that they give there what they should.

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

        replays : a graph that runs with the same shapes and addresses many times; each run says by a run option which
        recording it is (see ``runtime.decoder``).

        keeps : memory of the CPU that a run has taken stays for the next one; False: it goes back to the system.

        encoder : a vision graph. CoreML takes part in these only, since it has none of the decoder's operators.

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
            # Its threads would spin after every pass and take a third of the pace from the decoder beside them.
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
        """Around every run on the device, so that none disturbs a recording.

        first : of a step that is recorded, if the device records steps; then nothing else runs beside it.
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
    """What the thread calls that runs the CPU's vision graph, before its first run; see ``ENCODER_NICENESS``."""
    step_back(ENCODER_NICENESS)


def _started_behind(start: Callable[[], ort.InferenceSession]) -> ort.InferenceSession:
    """A session whose own threads step back: they inherit that from the thread that starts them, which ends here."""
    with ThreadPoolExecutor(1, initializer=step_behind) as threads:
        return threads.submit(start).result()


def find_device(name: str = "auto", threads: int | None = None) -> Device:
    """The device for a name that a user gave.

    ``auto`` takes CUDA, else CoreML, else the CPU, whichever this installation has. ``metal`` means ``coreml``.

    Raises
    ------
    RuntimeUnavailable
        when the installed ONNX Runtime has no such provider; the message has the install command.
    ValueError
        for a name that is no device.
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
    """The names of the devices that a name means: of ``cuda:all`` each card, of all others the one."""
    if name != "cuda:all":
        return [name]
    load_cuda_libraries()
    return [f"cuda:{index}" for index in range(card_count())]


def load_cuda_libraries() -> None:
    """Make the NVIDIA libraries of the ``cuda`` extra known to the loader; a build without CUDA has nothing to load."""
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
        # Both packages install the same module, so the CPU one has to go first.
        return "Install the CUDA build with: pip uninstall -y onnxruntime && pip install 'ocr-onnx[cuda]'"
    if device == "coreml":
        return "CoreML comes with macOS and pip install 'ocr-onnx[cpu]' there"
    return "Install it with: pip install 'ocr-onnx[cpu]'"
