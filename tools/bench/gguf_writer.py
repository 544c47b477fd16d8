"""A checkpoint's decoder as a GGUF file for llama-bench: architecture ``deepseek2-ocr``, Q4_0 or Q8_0.

Tensor by tensor: the file's header is written from shapes, then each tensor is read, quantised with llama.cpp's own
block format and appended, so at most the experts of one layer are in memory. There is no tokenizer in the file
(llama-bench feeds random ids); for pages use llama.cpp's own converter (``llama.convert``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from export.checkpoint import Checkpoint

from .turns import BenchError

try:
    import gguf
except ImportError:  # optional; ``write_decoder`` says how to get it
    gguf = None  # type: ignore[assignment]

ARCHITECTURE = "deepseek2-ocr"
TYPES = ("Q4_0", "Q8_0", "F32")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file: its parts in the checkpoint are stacked when there are several."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]  # as NumPy sees it, outermost axis first
    quantised: bool


def decoder_tensors(checkpoint: Checkpoint) -> Iterator[GgufTensor]:
    """Every tensor of the decoder, by llama.cpp's names."""
    config = _decoder_config(checkpoint)

    def tensor(name: str, *sources: str, quantised: bool = True) -> GgufTensor:
        shape = checkpoint.shape(sources[0])
        stacked = (len(sources), *shape) if len(sources) > 1 else shape
        return GgufTensor(f"{name}.weight", sources, stacked, quantised)

    yield tensor("token_embd", "model.embed_tokens.weight")
    for i in range(config["num_hidden_layers"]):
        ours, theirs = f"model.layers.{i}", f"blk.{i}"
        yield tensor(f"{theirs}.attn_norm", f"{ours}.input_layernorm.weight", quantised=False)
        for side, short in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output")):
            yield tensor(f"{theirs}.attn_{short}", f"{ours}.self_attn.{side}_proj.weight")
        yield tensor(f"{theirs}.ffn_norm", f"{ours}.post_attention_layernorm.weight", quantised=False)
        if i < config["first_k_dense_replace"]:
            for side in ("gate", "up", "down"):
                yield tensor(f"{theirs}.ffn_{side}", f"{ours}.mlp.{side}_proj.weight")
            continue
        yield tensor(f"{theirs}.ffn_gate_inp", f"{ours}.mlp.gate.weight", quantised=False)
        for side in ("gate", "up", "down"):
            experts = [f"{ours}.mlp.experts.{n}.{side}_proj.weight" for n in range(config["n_routed_experts"])]
            yield tensor(f"{theirs}.ffn_{side}_exps", *experts)
            yield tensor(f"{theirs}.ffn_{side}_shexp", f"{ours}.mlp.shared_experts.{side}_proj.weight")
    yield tensor("output_norm", "model.norm.weight", quantised=False)
    yield tensor("output", "lm_head.weight")


def write_decoder(source: Path, target: Path, type_name: str, *, progress: bool = False) -> Path:
    """Write the decoder of the checkpoint in ``source``; returns ``target``, which appears when it is whole.

    Raises
    ------
    BenchError
        when the ``gguf`` package is missing, or a type is asked for that it cannot write.
    """
    if gguf is None:
        raise BenchError("writing GGUF files needs the gguf package: pip install 'ocr-onnx[bench]'")
    if type_name not in TYPES:
        raise BenchError(f"type {type_name!r} is unknown; use one of {', '.join(TYPES)}")
    checkpoint = Checkpoint(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    writer = gguf.GGUFWriter(partial, ARCHITECTURE)
    _add_keys(writer, _decoder_config(checkpoint), type_name)
    tensors = list(decoder_tensors(checkpoint))
    for one in tensors:
        kind = _type_of(one, type_name)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), int(np.prod(one.shape)) // block * size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for one in tqdm(tensors, desc=target.name, disable=not progress):
        kind = _type_of(one, type_name)
        # One source at a time: quantising takes several float32 copies.
        parts = [gguf.quants.quantize(checkpoint.load(name).astype(np.float32), kind) for name in one.sources]
        writer.write_tensor_data(np.stack(parts) if len(parts) > 1 else parts[0])
    writer.close()
    return partial.replace(target)


def _type_of(tensor: GgufTensor, type_name: str) -> Any:
    return gguf.GGMLQuantizationType[type_name if tensor.quantised else "F32"]


def _decoder_config(checkpoint: Checkpoint) -> dict[str, Any]:
    config: dict[str, Any] = checkpoint.config["language_config"]
    return config


def _add_keys(writer: Any, config: dict[str, Any], type_name: str) -> None:
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    writer.add_name("generated weights")
    writer.add_file_type(gguf.LlamaFileType[{"F32": "ALL_F32"}.get(type_name, f"MOSTLY_{type_name}")])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def dequantised(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Tensors of a GGUF file as float32, for checks."""
    reader = gguf.GGUFReader(path)
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
        if tensor.name in names
    }
