"""The tower of GLM-OCR, dots.ocr and LightOnOCR computes what transformers' own modules compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from export import dots_ocr, glm_vision, lighton_ocr
from export.check import check_structure
from export.family import GraphPart
from export.graphs import graph_file, stored_weights, write_graphs
from export.layers import BFLOAT16, FLOAT, FLOAT16, Precision
from export.mergers import MergerSpec
from export.outliers import planted
from export.rms_vision import Tower, TowerSpec, tower_graph, tower_outliers
from models.patches import PatchRules, page_inputs
from models.processor import session_entries
from tests.export.proof import cosines, relative_error

torch = pytest.importorskip("torch")

WIDTH, MLP, HIDDEN, PATCH = 48, 80, 40, 14
PAGES = [(2, 2), (4, 6), (2, 20), (12, 10)]  # rows, columns of patches


@dataclass
class Case:
    """One tower: its tensors under the published names, transformers' features for pixels, and its rules."""

    tensors: Mapping[str, np.ndarray]
    reference: Callable[[np.ndarray], np.ndarray]
    build: Callable[[Precision], Tower]
    rules: PatchRules
    names: Any
    spec: TowerSpec


def randomised(module: Any, *, scaled: bool) -> Any:
    """Random weights, norms near one. Unscaled, an error of any layer shows; scaled, activations are as large as in
    trained models, which is what 8 bits are judged on."""
    torch.manual_seed(19)
    for parameter in module.parameters():
        spread = torch.randn_like(parameter) * (parameter[0].numel() ** -0.5 if scaled else 0.3)
        parameter.data = 1 + 0.3 * torch.randn_like(parameter) if parameter.ndim == 1 else spread
    return module.eval().float()


def arrays(module: Any, rename: Callable[[str], str]) -> dict[str, np.ndarray]:
    return {rename(name): tensor.numpy() for name, tensor in module.state_dict().items()}


def in_blocks(pixels: np.ndarray, frames: int) -> Any:
    """Patches block after block, as the processors of the Qwen2-VL line give them: [patches, 3 * frames * 14 * 14]."""
    rows, columns = (side // PATCH for side in pixels.shape[2:])
    split = pixels[0].reshape(3, rows // 2, 2, PATCH, columns // 2, 2, PATCH).transpose(1, 4, 2, 5, 0, 3, 6)
    whole = np.repeat(split[:, :, :, :, :, None], frames, axis=5).reshape(rows * columns, -1)
    return torch.from_numpy(np.ascontiguousarray(whole)), torch.tensor([[1, rows, columns]])


def glm(*, scaled: bool) -> Case:
    from transformers.models.glm_ocr.configuration_glm_ocr import GlmOcrVisionConfig
    from transformers.models.glm_ocr.modeling_glm_ocr import GlmOcrVisionModel

    vision = {
        "hidden_size": WIDTH, "depth": 3, "num_heads": 3, "intermediate_size": MLP, "out_hidden_size": HIDDEN,
        "patch_size": PATCH, "temporal_patch_size": 2, "spatial_merge_size": 2, "attention_bias": True,
        "hidden_act": "silu", "rms_norm_eps": 1e-5,
    }  # fmt: skip
    model = randomised(GlmOcrVisionModel(GlmOcrVisionConfig(**vision)), scaled=scaled)
    spec = glm_vision.tower_spec({"vision_config": vision})
    merger = glm_vision.merger_spec({"vision_config": vision}, HIDDEN)

    def reference(pixels: np.ndarray) -> np.ndarray:
        patches, grid = in_blocks(pixels, frames=2)
        return model(patches, grid_thw=grid).pooler_output.numpy()

    return Case(
        arrays(model, lambda name: f"model.visual.{name}"), reference,
        lambda precision: glm_vision.tower(spec, merger, precision),
        PatchRules(patch_size=PATCH, merge_size=2, head_dim=16), glm_vision.NAMES, spec,
    )  # fmt: skip


def dots(*, scaled: bool) -> Case:
    """The published tower is transformers' of dots3-note without its norms of heads."""
    from transformers.models.dots3_note.configuration_dots3_note import Dots3NoteVisionConfig
    from transformers.models.dots3_note.modeling_dots3_note import Dots3NoteVisionModel

    config = Dots3NoteVisionConfig(
        hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=3, num_attention_heads=3, patch_size=PATCH,
        mlp_layer_types=["dense"] * 3, adapter_in_dim=WIDTH, adapter_out_dim=HIDDEN, attention_bias=False,
        mlp_bias=False, rms_norm_eps=1e-5,
    )  # fmt: skip
    model = Dots3NoteVisionModel(config)
    for block in model.blocks:
        block.attn.q_norm = block.attn.k_norm = torch.nn.Identity()
    model = randomised(model, scaled=scaled)
    vision = {
        "embed_dim": WIDTH, "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 3,
        "intermediate_size": MLP, "patch_size": PATCH, "spatial_merge_size": 2, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    spec = dots_ocr.tower_spec({"vision_config": vision})
    merger = dots_ocr.merger_spec({"vision_config": vision}, HIDDEN)

    def published(name: str) -> str:
        pairs = {
            "patch_embed.": "patch_embed.patchifier.", "gate_proj": "fc1", "up_proj": "fc3", "down_proj": "fc2",
        }  # fmt: skip
        for theirs, ours in pairs.items():
            name = name.replace(theirs, ours)
        return f"vision_tower.{'post_trunk_norm.weight' if name == 'norm.weight' else name}"

    def reference(pixels: np.ndarray) -> np.ndarray:
        patches, grid = in_blocks(pixels, frames=1)
        return model(patches, grid_thw=grid).pooler_output.numpy()

    tensors = arrays(model, published)
    proj = "vision_tower.patch_embed.patchifier.proj.weight"
    tensors[proj] = tensors[proj].reshape(WIDTH, 3, PATCH, PATCH)
    return Case(
        tensors, reference, lambda precision: dots_ocr.tower(spec, merger, precision),
        PatchRules(patch_size=PATCH, merge_size=2, head_dim=16), dots_ocr.NAMES, spec,
    )  # fmt: skip


def lighton(*, scaled: bool) -> Case:
    from transformers.models.lighton_ocr.configuration_lighton_ocr import LightOnOcrConfig
    from transformers.models.lighton_ocr.modeling_lighton_ocr import LightOnOcrForConditionalGeneration

    vision = {
        "model_type": "pixtral", "hidden_size": WIDTH, "head_dim": 16, "intermediate_size": MLP,
        "num_attention_heads": 3, "num_hidden_layers": 3, "patch_size": PATCH, "image_size": 280, "hidden_act": "silu",
        "num_channels": 3, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000},
    }  # fmt: skip
    text = {
        "model_type": "qwen3", "hidden_size": HIDDEN, "head_dim": 8, "intermediate_size": 40, "num_attention_heads": 4,
        "num_hidden_layers": 1, "num_key_value_heads": 2, "vocab_size": 96,
    }  # fmt: skip
    config = LightOnOcrConfig(vision_config=vision, text_config=text, image_token_id=90)
    model = randomised(LightOnOcrForConditionalGeneration(config), scaled=scaled).model
    spec = lighton_ocr.tower_spec({"vision_config": vision}, config.text_config.rms_norm_eps)

    def reference(pixels: np.ndarray) -> np.ndarray:
        sizes = torch.tensor([list(pixels.shape[2:])])
        return model.get_image_features(torch.from_numpy(pixels), sizes).pooler_output[0].numpy()

    return Case(
        arrays(model, lambda name: f"model.{name}"), reference,
        lambda precision: lighton_ocr.tower(spec, MergerSpec(WIDTH, 2, HIDDEN), precision),
        PatchRules(patch_size=PATCH, merge_size=2, head_dim=16, alternating=True), lighton_ocr.NAMES, spec,
    )  # fmt: skip


CASES = {"glm-ocr": glm, "dots-ocr": dots, "lighton-ocr": lighton}


@pytest.fixture(scope="module")
def case_of() -> Callable[..., Case]:
    return cache(lambda name, *, scaled=False: CASES[name](scaled=scaled))


def written(folder: Path, case: Case, precision: Precision, load: Any = None) -> Path:
    """The tower's graph with its weights, in a folder."""
    tower = case.build(precision)
    parts: Any = {precision.provider: {"vision": GraphPart(tower, lambda: tower_graph(tower))}}
    write_graphs(folder, parts, stored_weights(parts), load or case.tensors.__getitem__)
    return folder / graph_file("vision", precision.provider)


def features(file: Path, rules: PatchRules, pixels: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    for entry in session_entries().items():
        options.add_session_config_entry(*entry)
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    rows, columns = (side // PATCH for side in pixels.shape[2:])
    feeds = {"pixel_values": pixels, **page_inputs(rows, columns, rules)}
    return np.asarray(session.run(["features"], feeds)[0])


def noise(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows * columns).standard_normal((1, 3, rows * PATCH, columns * PATCH), np.float32)


@pytest.mark.parametrize("family", CASES)
def test_features_of_every_layout_equal_the_reference(case_of, tmp_path, family) -> None:
    case = case_of(family)
    file = written(tmp_path, case, Precision(FLOAT, FLOAT))
    odd = [(5, 6), (7, 3), (11, 10)] if family == "lighton-ocr" else []
    for page in [*PAGES, *odd]:
        with torch.no_grad():
            expected = case.reference(noise(*page))
        ours = features(file, case.rules, noise(*page))
        assert ours.shape == expected.shape == (page[0] // 2 * (page[1] // 2), HIDDEN)
        assert relative_error(ours, expected) < 1e-4, page


PRECISIONS = {
    "f16": (Precision(FLOAT16, FLOAT), 0.9999),
    "f16 on a GPU": (Precision(FLOAT16, FLOAT16, provider="cuda"), 0.999),
    "q8": (Precision(FLOAT16, FLOAT, channels=True), 0.98),
}


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("name", PRECISIONS)
def test_smaller_types_keep_the_features(case_of, tmp_path, family, name) -> None:
    """The graph for a GPU runs on the CPU too, where that has its kernels."""
    case, (precision, least) = case_of(family, scaled=True), PRECISIONS[name]
    with torch.no_grad():
        expected = case.reference(noise(12, 10))
    ours = features(written(tmp_path, case, precision), case.rules, noise(12, 10))
    assert cosines(ours, expected).min() > least


@pytest.mark.parametrize("family", CASES)
def test_an_8_bit_tower_keeps_the_features_of_a_model_with_outliers(case_of, tmp_path, family) -> None:
    case = case_of(family, scaled=True)
    with torch.no_grad():
        expected = case.reference(noise(12, 10))
    load = planted(case.tensors.__getitem__, list(tower_outliers(case.names, case.spec)))
    exact = features(written(tmp_path, case, Precision(FLOAT, FLOAT), load), case.rules, noise(12, 10))
    assert cosines(exact, expected).min() > 0.9999  # planted, and the same function
    precision = Precision(FLOAT16, FLOAT, channels=True)
    assert cosines(features(written(tmp_path, case, precision, load), case.rules, noise(12, 10)), expected).min() > 0.95


@pytest.mark.parametrize("family", CASES)
def test_the_graphs_for_cuda_are_valid_and_compute_no_shapes(case_of, tmp_path, family) -> None:
    """A shape that is computed waits for the GPU."""
    for precision in (Precision(FLOAT16, FLOAT16, provider="cuda"), Precision(BFLOAT16, BFLOAT16, provider="cuda")):
        file = written(tmp_path, case_of(family), precision)
        check_structure(file)
        assert "Shape" not in {node.op_type for node in ir.load(file).graph}
