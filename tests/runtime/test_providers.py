"""Devices: a device that cannot be had is an error with the command that brings it, never another device."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from models.manifest import Graph
from models.model_errors import ManifestError
from runtime import providers
from runtime.providers import Device, find_device
from runtime.runtime_errors import RuntimeUnavailable

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA, COREML = "CPUExecutionProvider", "CUDAExecutionProvider", "CoreMLExecutionProvider"


@pytest.fixture
def installed(monkeypatch):
    """Let ONNX Runtime have these providers."""

    def install(*names: str, system: str = "Linux") -> None:
        monkeypatch.setattr(providers.ort, "get_available_providers", lambda: list(names))
        monkeypatch.setattr(providers.ort, "preload_dlls", lambda: None, raising=False)
        monkeypatch.setattr(providers.platform, "system", lambda: system)

    return install


@pytest.mark.parametrize("entry", ["runtime.Model", "import runtime.model", "import runtime.decoder"])
def test_without_onnx_runtime_every_entry_names_the_command_that_installs_it(entry) -> None:
    program = "\n".join(
        (
            "import sys",
            "sys.modules['onnxruntime'] = None  # as if it were not installed",
            "import runtime, runtime.requests, runtime.runtime_errors  # these are of use without it",
            "try:",
            f"    {entry}",
            "except runtime.runtime_errors.RuntimeUnavailable as error:",
            "    print(error)",
        )
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "pip install 'ocr-onnx[cpu]'" in run.stdout
    assert "'ocr-onnx[cuda]'" in run.stdout


def test_cuda_on_the_cpu_build_names_the_commands_that_replace_it(installed) -> None:
    installed("AzureExecutionProvider", CPU)
    with pytest.raises(RuntimeUnavailable) as caught:
        find_device("cuda")
    assert "--device cuda" in str(caught.value)
    assert CPU in str(caught.value)
    assert "pip uninstall -y onnxruntime && pip install 'ocr-onnx[cuda]'" in str(caught.value)


def test_the_onnx_runtime_of_this_machine_is_asked_and_not_the_name_only() -> None:
    if CUDA in providers.ort.get_available_providers():
        pytest.skip("this machine has the CUDA build")
    with pytest.raises(RuntimeUnavailable, match=re.escape(providers.ort.__version__)):
        find_device("cuda")


def test_cuda_on_a_mac_points_to_coreml(installed) -> None:
    installed(COREML, CPU, system="Darwin")
    with pytest.raises(RuntimeUnavailable, match="use --device coreml"):
        find_device("cuda")


@pytest.mark.parametrize("name", ["coreml", "metal"])
def test_coreml_elsewhere_says_where_it_is_to_be_had(installed, name) -> None:
    installed(CPU)
    with pytest.raises(RuntimeUnavailable, match=rf"--device {name} needs .*CoreML comes with macOS"):
        find_device(name)
    installed(COREML, CPU, system="Darwin")
    assert find_device(name).name == "coreml"


@pytest.mark.parametrize(
    ("names", "expected"),
    [((CPU,), "cpu"), ((CUDA, CPU), "cuda"), ((COREML, CPU), "coreml"), ((CPU, COREML, CUDA), "cuda")],
)
def test_auto_takes_the_best_that_is_there(installed, names, expected) -> None:
    installed(*names)
    assert find_device("auto").name == expected
    assert find_device("cpu").name == "cpu"


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="device 'tpu' is unknown; use one of cpu, cuda, coreml, metal, auto"):
        find_device("tpu")


def test_each_device_takes_its_graph_and_memory() -> None:
    kinds = {name: (Device(name, 0).graph, Device(name, 0).memory) for name in ("cpu", "cuda", "coreml")}
    assert kinds == {"cpu": ("cpu", "cpu"), "cuda": ("cuda", "cuda"), "coreml": ("cpu", "cpu")}


def test_a_graph_that_is_not_there_is_no_traceback(tmp_path) -> None:
    with pytest.raises(RuntimeUnavailable, match="no graph for cuda; export another dtype, or take another device"):
        Device("cuda", 0).session(tmp_path, Graph(files={"cpu": "x.onnx"}, compute={"cpu": "float32"}))


class FakeSession:
    """Stands for ``InferenceSession``: remembers what it was asked for, starts only the providers in ``works``."""

    works = (CPU,)
    asked: ClassVar[list[tuple]] = []

    def __init__(self, path, options, providers) -> None:
        FakeSession.asked.append((Path(path).name, options, providers))
        self.providers = [name for name, _ in providers if name in FakeSession.works] or [CPU]

    def get_providers(self) -> list[str]:
        return self.providers


@pytest.fixture
def sessions(monkeypatch):
    FakeSession.asked, FakeSession.works = [], (CPU,)
    monkeypatch.setattr(providers.ort, "InferenceSession", FakeSession)
    return FakeSession


BOTH = Graph(files={"cpu": "x.onnx", "cuda": "x.cuda.onnx"}, compute={"cpu": "float32", "cuda": "float16"})


def test_a_provider_that_cannot_start_is_an_error_and_no_silent_fall_back(sessions, tmp_path, installed) -> None:
    installed(CUDA, CPU)
    with pytest.raises(
        RuntimeUnavailable, match=r"could not start it .*pip install 'ocr-onnx\[cuda\]', or use --device cpu"
    ):
        Device("cuda", 0).session(tmp_path, BOTH)


def test_cuda_gets_its_own_graph_and_options(sessions, tmp_path) -> None:
    sessions.works = (CUDA,)
    Device("cuda", 0).session(tmp_path, BOTH)
    (name, _, [(provider, options)]) = sessions.asked[0]
    assert (name, provider) == ("x.cuda.onnx", CUDA)
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["arena_extend_strategy"] == "kSameAsRequested"


def test_coreml_takes_part_in_the_vision_graph_only(sessions, tmp_path) -> None:
    sessions.works = (COREML, CPU)
    device = Device("coreml", 0)
    device.session(tmp_path, BOTH, encoder=True)
    device.session(tmp_path, BOTH)
    assert [providers[0][0] for _, _, providers in sessions.asked] == [COREML, CPU]
    assert [name for name, _, _ in sessions.asked] == ["x.onnx", "x.onnx"]


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_threads_reach_the_session(sessions, monkeypatch, tmp_path, threads) -> None:
    monkeypatch.setattr(providers, "default_threads", lambda: 7)
    find_device("cpu", threads).session(tmp_path, BOTH)
    assert sessions.asked[0][1].intra_op_num_threads == (threads or 7)


@pytest.mark.parametrize(("value", "replays"), [("1", True), ("0", False), (None, True)])
def test_cuda_graphs_are_for_the_decoder_unless_they_are_switched_off(
    installed, monkeypatch, tmp_path, value, replays
) -> None:
    installed(CUDA, CPU)
    monkeypatch.delenv(providers.CUDA_GRAPHS, raising=False)
    if value is not None:
        monkeypatch.setenv(providers.CUDA_GRAPHS, value)
    asked: list[dict[str, str]] = []

    class Session:
        def __init__(self, file: Path, options: object, providers: list[tuple[str, dict[str, str]]]) -> None:
            asked.append(providers[0][1])

        def get_providers(self) -> list[str]:
            return [CUDA]

    monkeypatch.setattr(providers.ort, "InferenceSession", Session)
    device = find_device("cuda")
    assert device.replays == replays
    graph = Graph(files={"cuda": "x.onnx"}, compute={"cuda": "float16"})
    device.session(tmp_path, graph, encoder=True)
    device.session(tmp_path, graph)
    device.session(tmp_path, graph, replays=True)
    assert [options["enable_cuda_graph"] for options in asked] == ["0", "0", "1" if replays else "0"]
    installed(CPU)
    assert not find_device("cpu").replays


def test_a_gpu_without_memory_is_not_taken_for_a_damaged_export(sessions, tmp_path, installed, monkeypatch) -> None:
    installed(CUDA, CPU)

    def fail(error: Exception) -> None:
        def make(*args, **kwargs) -> None:
            raise error

        monkeypatch.setattr(providers.ort, "InferenceSession", make)

    fail(RuntimeError("CUDA failure 2: out of memory"))
    with pytest.raises(RuntimeUnavailable, match="out of memory; if its memory is full, free some, lower --slots"):
        Device("cuda", 0).session(tmp_path, BOTH)
    fail(providers.ort_state.InvalidProtobuf("Protobuf parsing failed"))
    with pytest.raises(ManifestError, match="export the model again"):
        Device("cuda", 0).session(tmp_path, BOTH)
