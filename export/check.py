"""The last check of graphs before they are published: each loads, and one tiny forward pass is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from models.family import taken
from models.manifest import Checked, Manifest, Provider
from models.registry import family_of
from models.rotary import rotary_tables

from .export_errors import ExportError
from .graphs import graph_file
from .layers import FLOAT

# Largest relative error (2-norm) of CUDA's features and logits against the CPU's. Noise is over 0.5; the CPU's 8-bit
# products with quantised weights alone are up to 0.06 off.
_LARGEST_ERRORS = {"f32": 1e-3, "f16": 0.02, "bf16": 0.05, "q8": 0.1, "q4": 0.1}

# CUDA kernels exist for opset 18, but not for 20, where ONNX changed these operators (1.31.1): they would run on the
# CPU, and a step that leaves the GPU cannot be recorded.
_WITHOUT_KERNEL = frozenset({"ReduceMax", "ReduceMin"})


def best_device() -> str:
    """The device that ``auto`` means in this installation."""
    available = ort.get_available_providers()
    devices = {"cuda": "CUDAExecutionProvider", "coreml": "CoreMLExecutionProvider"}
    return next((name for name, provider in devices.items() if provider in available), "cpu")


def check_graphs(folder: Path, manifest: Manifest) -> dict[Provider, Checked]:
    """Run the graphs once: the smallest view through the vision tower, its features through the decoder.

    Graphs for CUDA run where CUDA is, and must agree with the CPU's. Elsewhere only their structure is checked. CPU
    sessions map the weights from the files and do not copy them, so the check takes little memory.

    Returns how each provider's graphs were checked.

    Raises
    ------
    ExportError
        when a graph does not load, gives a value that is not finite, or another value on CUDA than on the CPU.
    """
    reference = _forward(folder, manifest, "cpu", mapped_session)
    if not cuda_works(folder / graph_file("embed", "cuda")):
        for name in ("vision", "embed", "decoder"):
            check_structure(folder / graph_file(name, "cuda"))
        return {"cpu": "run", "cuda": "structure only, not run"}
    found = _forward(folder, manifest, "cuda", cuda_session)
    bound = _LARGEST_ERRORS[manifest.dtype]
    for what in reference:
        error = float(np.linalg.norm(found[what] - reference[what]) / np.linalg.norm(reference[what]))
        if not error <= bound:
            raise ExportError(
                f"the {what} of the graphs for CUDA differ from the CPU's by {error:.2g} (at most {bound} is "
                "rounding); export another dtype, and report this with the card and the version of onnxruntime-gpu"
            )
    return {"cpu": "run", "cuda": "run"}


def cuda_works(file: Path) -> bool:
    """Whether a GPU works, and not only a build for one is installed: ONNX Runtime falls back to the CPU silently."""
    if best_device() != "cuda":
        return False
    ort.preload_dlls()
    return bool(cuda_session(file).get_providers()[0] == "CUDAExecutionProvider")


def check_structure(file: Path) -> None:
    """Check a graph for CUDA without a GPU: ONNX Runtime accepts its types, and known traps are avoided.

    Raises
    ------
    ExportError
        naming the node.
    """
    try:
        mapped_session(file)
    except ExportError as error:
        # Types are checked before kernels are looked up, and the CPU lacks some of CUDA's kernels.
        if not isinstance(error.__cause__, ort_state.NotImplemented):
            raise
    graph = ir.load(file).graph
    for node in graph:
        if node.op_type in _WITHOUT_KERNEL:
            raise ExportError(f"{file.name}: {node.op_type} has no kernel on CUDA and would run on the CPU")
        # Without the attribute CUDA takes the weights as packed for its kernel, and the result is noise.
        prepacked = node.attributes.get("weights_prepacked")
        if node.op_type == "QMoE" and (prepacked is None or prepacked.as_int() != 0):
            raise ExportError(f"{file.name}: {node.name or node.op_type} does not say weights_prepacked=0")
        if node.op_type == "GroupQueryAttention" and node.inputs[3] is not None and node.inputs[3].dtype == FLOAT:
            raise ExportError(f"{file.name}: {node.name or node.op_type} in float32 has no kernel on CUDA")


def _forward(
    folder: Path, manifest: Manifest, provider: Provider, session: Callable[[Path], ort.InferenceSession]
) -> dict[str, np.ndarray]:
    """Features of a small view and the logits behind them, by one provider's graphs."""
    family = family_of(manifest)
    prepared = family.smallest_image()
    vision = session(folder / graph_file("vision", provider))
    names = [output.name for output in vision.get_outputs()]
    inputs = [given.name for given in vision.get_inputs()]
    outputs = [dict(zip(names, vision.run(names, taken(make(), inputs)), strict=True)) for make in prepared.passes]
    del vision
    features = _finite("the vision graph", prepared.assemble(outputs))
    embed = session(folder / graph_file("embed", provider))
    token = np.array([[manifest.tokens.bos]])
    (start,) = embed.run(None, {"input_ids": token})
    del embed
    sizes = manifest.sizes
    length = 1 + len(features)
    feeds = {
        "inputs_embeds": np.concatenate([start, features[None].astype(start.dtype)], axis=1),
        "seqlens_k": np.array([length - 1], np.int32),
        "total_length": np.array(length, np.int32),
    }
    if sizes.rotary is not None:
        positions = np.tile(np.arange(length), (len(sizes.rotary.sections), 1))
        tables = rotary_tables(positions, sizes.rotary.sections, sizes.rotary.theta)
        feeds["rotary_cos"], feeds["rotary_sin"] = (table.astype(start.dtype) for table in tables)
        feeds["rotary_rows"] = np.arange(length)[None]
    decoder = session(folder / graph_file("decoder", provider))
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    empty = np.zeros((1, sizes.kv_heads, length, sizes.head_dim), np.float32)
    for given in decoder.get_inputs():
        if given.name.startswith("past_key_values."):
            values[given.name] = _cache(empty, given.type)
    (logits,) = decoder.run_with_ort_values(["logits"], values)
    return {"features": features, "logits": _finite("the decoder", logits.numpy().copy())}


def _cache(empty: np.ndarray, kind: str) -> ort.OrtValue:
    """An empty side of a layer's cache in the type that the graph wants."""
    if kind == "tensor(bfloat16)":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(empty.astype(np.uint16), ir.DataType.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(empty.astype({"tensor(float16)": np.float16}.get(kind, np.float32)))


def cuda_session(path: Path) -> ort.InferenceSession:
    """A session on the first GPU.

    Raises
    ------
    ExportError
        when the graph does not load there.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(path, options, providers=["CUDAExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises several unrelated classes
        raise ExportError(f"ONNX Runtime cannot load {path.name} on CUDA: {error}") from error
    return session


def mapped_session(path: Path) -> ort.InferenceSession:
    """A session for few runs in little memory: weights stay mapped from the file, and are widened one after another.

    Raises
    ------
    ExportError
        when the graph does not load.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")  # weights stay mapped from the file
    # No folding: it would hold float32 copies of all float16 weights at once.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False  # widened weights of one layer go back before the next
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises several unrelated classes
        raise ExportError(f"ONNX Runtime cannot load {path.name}: {error}") from error


def _finite(what: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ExportError(f"{what} gives values that are not finite; the checkpoint is damaged, or too large for f16")
    return array
