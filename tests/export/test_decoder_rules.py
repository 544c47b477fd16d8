"""Rules by which decoders differ, each against transformers' own module with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from transformers import GlmOcrTextConfig, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.glm_ocr.modeling_glm_ocr import GlmOcrTextModel

from export.decoder import Decoder, DecoderSpec, decoder_graph
from export.layers import BFLOAT16, FLOAT, FLOAT16, Precision
from export.quantize import Blocks
from export.weights import DataFile, weights_of
from models.manifest import Provider
from models.processor import session_entries
from models.rotary import rotary_tables

from .proof import relative_error
from .twins import widened

PROMPT, STEPS, CAPACITY = 11, 5, 32
SPEC = DecoderSpec(
    hidden=64, layers=3, heads=4, kv_heads=2, head_dim=32, mlp_width=96, dense_layers=3, moe=None, vocabulary=120,
    max_length=CAPACITY, rope_theta=1e4, rms_epsilon=1e-5,
)  # fmt: skip
COMMON: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 96, "vocab_size": 120, "rms_norm_eps": 1e-5, "max_position_embeddings": CAPACITY,
    "attn_implementation": "eager",
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4}
GLM_SECTIONS = (4, 6, 6)

# An image of 2 x 3 features behind two words, then words: time, row and column of each token.
IMAGE_POSITIONS = np.array(
    [[0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7], [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7], [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7]]
)
COUNTED = np.arange(PROMPT)[None]


@dataclass
class Known:
    """transformers' decoder with random weights, under the published names.

    hidden : embeddings [S, hidden], positions [axes, S] -> logits [S, vocabulary].
    """

    spec: DecoderSpec
    at: str
    tensors: Mapping[str, np.ndarray]
    logits: Callable[[np.ndarray, np.ndarray], np.ndarray]
    positions: np.ndarray  # of the prompt


def filled(module: Any, seed: int) -> Any:
    """Random weights that keep activations of one size; norms and biases away from what they do nothing at."""
    rng = np.random.default_rng(seed)
    for parameter in module.parameters():
        values = rng.standard_normal(parameter.shape)
        values = 1 + 0.3 * values if parameter.ndim == 1 else values / parameter.shape[-1] ** 0.5
        parameter.data = torch.from_numpy(values.astype(np.float32))
    return module.eval()


def tensors_of(module: Any, at: str = "") -> dict[str, np.ndarray]:
    return {at + name: tensor.numpy() for name, tensor in module.state_dict().items()}


@torch.no_grad()
def causal_logits(model: Any, embeddings: np.ndarray, positions: np.ndarray) -> np.ndarray:
    found: np.ndarray = model(inputs_embeds=torch.from_numpy(embeddings[None])).logits[0].numpy()
    return found


def qwen2() -> Known:
    model = filled(Qwen2ForCausalLM(Qwen2Config(**COMMON, rope_parameters=ROPE, tie_word_embeddings=False)), 0)
    return Known(replace(SPEC, qkv_bias=True), "model", tensors_of(model), partial(causal_logits, model), COUNTED)


def qwen3(tied: bool) -> Known:
    model = filled(Qwen3ForCausalLM(Qwen3Config(**COMMON, rope_parameters=ROPE, tie_word_embeddings=tied)), 1)
    tensors = tensors_of(model)
    if tied:
        del tensors["lm_head.weight"]
    spec = replace(SPEC, qk_norm=True, tied_head=tied)
    return Known(spec, "model", tensors, partial(causal_logits, model), COUNTED)


def glm(positions: np.ndarray) -> Known:
    config = GlmOcrTextConfig(**COMMON, rope_parameters={**ROPE, "mrope_section": list(GLM_SECTIONS)})
    model = filled(GlmOcrTextModel(config), 2)
    head = filled(torch.nn.Linear(64, 120, bias=False), 3)

    @torch.no_grad()
    def logits(embeddings: np.ndarray, axes: np.ndarray) -> np.ndarray:
        places = torch.from_numpy(axes)[:, None]
        output = model(inputs_embeds=torch.from_numpy(embeddings[None]), position_ids=places, use_cache=False)
        found: np.ndarray = head(output.last_hidden_state)[0].numpy()
        return found

    spec = replace(SPEC, rotary_sections=GLM_SECTIONS, post_norms=True, rotary_pairs=True, fused_gate_up=True)
    at = "model.language_model"
    return Known(spec, at, {**tensors_of(model, f"{at}."), **tensors_of(head, "lm_head.")}, logits, positions)


KNOWN = {
    "biases of queries, keys and values (qwen2)": qwen2,
    "norms of heads, tied head (qwen3)": partial(qwen3, True),
    "norms of heads, head of its own (qwen3)": partial(qwen3, False),
    "four norms, pairs, fused MLP (glm_ocr)": partial(glm, np.tile(COUNTED, (3, 1))),
    "the same around an image (glm_ocr)": partial(glm, IMAGE_POSITIONS),
}


def ours(known: Known, precision: Precision, embeddings: np.ndarray, positions: np.ndarray, folder: Path) -> np.ndarray:
    """Logits [STEPS + 1, vocabulary]: after the prompt as one chunk, and after each further token by itself."""
    decoder = Decoder(known.at, "lm_head", known.spec, precision)
    graph = decoder_graph(decoder)
    with DataFile(folder / "decoder.data") as data:
        for name, weight in sorted(weights_of(decoder).items(), key=lambda item: not item[1].large):
            data.add(name, weight, known.tensors.__getitem__)
    for name, weight in weights_of(decoder).items():
        weight.const_value = data.tensor(name)
    model = ir.Model(graph, ir_version=10)
    ir.save(model if precision.compute == FLOAT else widened(model), folder / "decoder.onnx")
    options = ort.SessionOptions()
    for entry in session_entries().items():
        options.add_session_config_entry(*entry)
    session = ort.InferenceSession(folder / "decoder.onnx", options, providers=["CPUExecutionProvider"])
    caches = {
        given.name: np.zeros((1, SPEC.kv_heads, CAPACITY, SPEC.head_dim), np.float32)
        for given in session.get_inputs()
        if given.name.startswith("past_key_values.")
    }
    outputs = [output.name for output in session.get_outputs()]
    rows = []
    for start, end in [(0, PROMPT), *((i, i + 1) for i in range(PROMPT, PROMPT + STEPS))]:
        feeds = {
            "inputs_embeds": embeddings[None, start:end],
            "seqlens_k": np.array([end - 1], np.int32),
            "total_length": np.array(end, np.int32),
            **caches,
        }
        if known.spec.rotary_sections is not None:
            tables = rotary_tables(positions[:, :end], known.spec.rotary_sections, known.spec.rope_theta)
            feeds["rotary_cos"], feeds["rotary_sin"] = tables
            feeds["rotary_rows"] = np.arange(start, end)[None]
        found = dict(zip(outputs, session.run(outputs, feeds), strict=True))
        rows.append(found.pop("logits")[0])
        caches = {name.replace("present", "past_key_values"): value for name, value in found.items()}
    return np.stack(rows)


def both(known: Known, precision: Precision, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Our logits and transformers', after a prompt and in every step of an answer."""
    following = known.positions.max() + 1 + np.arange(STEPS)
    positions = np.concatenate([known.positions, np.tile(following, (len(known.positions), 1))], axis=1)
    embeddings = np.random.default_rng(9).standard_normal((PROMPT + STEPS, SPEC.hidden), np.float32)
    expected = known.logits(embeddings, positions)[PROMPT - 1 :]
    return ours(known, precision, embeddings, positions, folder), expected


@pytest.mark.parametrize("provider", ["cpu", "cuda"])  # the latter: attention written out, for float32
@pytest.mark.parametrize("name", KNOWN)
def test_every_rule_is_that_of_the_library(name: str, provider: Provider, tmp_path: Path) -> None:
    mine, theirs = both(KNOWN[name](), Precision(FLOAT, FLOAT, provider=provider), tmp_path)
    assert relative_error(mine, theirs) < 1e-4


# How much each type may change of the logits of these random weights: rounding of weights, and 8-bit activations.
ROUNDED = {
    "f16": (Precision(FLOAT16, FLOAT), 5e-3),
    "f16 on cuda": (Precision(FLOAT16, FLOAT16, provider="cuda"), 5e-3),
    "bf16 on cuda": (Precision(BFLOAT16, BFLOAT16, provider="cuda"), 4e-2),
    "q8": (Precision(FLOAT16, FLOAT, Blocks(8, 32)), 4e-2),
    "q4": (Precision(FLOAT16, FLOAT, Blocks(4, 32)), 0.35),
    "q4 on cuda": (Precision(FLOAT16, FLOAT16, Blocks(4, 32), provider="cuda"), 0.35),
}


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("name", KNOWN)
def test_every_rule_comes_in_every_type(name: str, dtype: str, tmp_path: Path) -> None:
    """The graphs for a GPU with float32 in place of their 16 bits."""
    precision, bound = ROUNDED[dtype]
    mine, theirs = both(KNOWN[name](), precision, tmp_path)
    assert 0 < relative_error(mine, theirs) < bound
