"""The last look at finished graphs before they are published: each loads, and one tiny forward pass is finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from models.manifest import Manifest
from models.registry import family_of
from models.rotary import rotary_tables
from models.settings import InferenceSettings

from .errors import ExportError
from .graphs import graph_file


def best_device() -> str:
    """The device that ``auto`` means to a server of this installation."""
    available = ort.get_available_providers()
    devices = {"cuda": "CUDAExecutionProvider", "coreml": "CoreMLExecutionProvider"}
    return next((name for name, provider in devices.items() if provider in available), "cpu")


def check_graphs(folder: Path, manifest: Manifest) -> None:
    """Run the CPU graphs once: the smallest view through the vision tower, its features through the decoder.

    Sessions map the weights from the files rather than copying them, so the check costs little memory.

    Raises
    ------
    ExportError
        when a graph does not load, or gives a value that is not finite.
    """
    family = family_of(manifest)
    side = 4 * int(manifest.image["patch_size"])
    image = Image.effect_noise((side, side), 64)
    prepared = family.prepare_image(image, InferenceSettings(crop_mode=False, image_size=side))
    vision = mapped_session(folder / graph_file("vision", "cpu"))
    names = [output.name for output in vision.get_outputs()]
    outputs = [dict(zip(names, vision.run(names, dict(make())), strict=True)) for make in prepared.passes]
    del vision
    features = _finite("the vision graph", prepared.assemble(outputs))
    embed = mapped_session(folder / graph_file("embed", "cpu"))
    token = np.array([[manifest.tokens.bos]])
    (start,) = embed.run(None, {"input_ids": token})
    del embed
    sizes = manifest.sizes
    length = 1 + len(features)
    cache = np.zeros((1, sizes.kv_heads, length, sizes.head_dim), start.dtype)
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
    for layer in range(sizes.layers):
        feeds[f"past_key_values.{layer}.key"] = feeds[f"past_key_values.{layer}.value"] = cache
    (logits,) = mapped_session(folder / graph_file("decoder", "cpu")).run(["logits"], feeds)
    _finite("the decoder", logits)


def mapped_session(path: Path) -> ort.InferenceSession:
    """A session for few runs in little memory: weights stay in their file and are widened one after another.

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
