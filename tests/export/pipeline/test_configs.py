"""Values of config.json, and files beside the weights, that no graph computes are named; nothing is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from export.export_errors import ExportError
from models.manifest import Manifest
from tests.export.jobs import TINY, WEIGHTS, edit_json, export, graph_bytes, refused
from tools.checkpoints import write_random_checkpoint

DECODER_KEYS = [
    "bos_token_id", "eos_token_id", "hidden_size", "intermediate_size", "max_position_embeddings",
    "moe_intermediate_size", "num_attention_heads", "num_experts_per_tok", "num_hidden_layers", "vocab_size",
]  # fmt: skip


@pytest.mark.parametrize("key", DECODER_KEYS)
def test_a_missing_config_value_is_named(checkpoint, target, key) -> None:
    def drop(config: dict[str, Any]) -> None:
        del config[key], config["language_config"][key]

    edit_json(checkpoint / "config.json", drop)
    assert key in refused(checkpoint, target)


@pytest.mark.parametrize("key", DECODER_KEYS)
def test_the_copy_at_the_top_level_serves_where_language_config_is_silent(checkpoint, target, key) -> None:
    edit_json(checkpoint / "config.json", lambda config: config["language_config"].pop(key))
    export(checkpoint, target)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ((), "vision_config"), (("vision_config",), "width"), (("vision_config",), "image_size"),
        *((("vision_config", "width"), key) for key in ("sam_vit_b", "clip-l-14-224")),
        *((("vision_config", "width", "sam_vit_b"), key)
          for key in ("layers", "heads", "width", "global_attn_indexes", "downsample_channels")),
        *((("vision_config", "width", "clip-l-14-224"), key)
          for key in ("layers", "heads", "width", "image_size", "patch_size")),
    ],
)  # fmt: skip
def test_a_missing_vision_value_is_named(checkpoint, target, part, key) -> None:
    def drop(config: dict[str, Any]) -> None:
        for name in part:
            config = config[name]
        del config[key]

    edit_json(checkpoint / "config.json", drop)
    assert key in refused(checkpoint, target)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_mla", True), ("topk_method", "noaux_tc"), ("topk_method", "group_limited_greedy"),
        ("scoring_func", "sigmoid"), ("hidden_act", "gelu"), ("attention_bias", True), ("tie_word_embeddings", True),
        ("rope_scaling", {"type": "yarn", "factor": 40}), ("moe_layer_freq", 2),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("rope_parameters", {"full_attention": {"rope_type": "default"}}),
        ("sliding_window", 128), ("sliding_window_size", 128), ("layer_types", ["sliding_attention"]),
        ("hidden_activation", "gelu_pytorch_tanh"), ("mlp_bias", True), ("use_qk_norm", True),
        ("norm_type", "layernorm"),
        ("final_logit_softcapping", 30.0), ("partial_rotary_factor", 0.25), ("logits_scaling", 8.0),
    ],
)  # fmt: skip
def test_a_config_value_that_the_graphs_do_not_implement_is_named(checkpoint, target, key, value) -> None:
    edit_json(checkpoint / "config.json", lambda config: config["language_config"].update({key: value}))
    error = refused(checkpoint, target)
    assert f"{key} is {value!r}" in error


def test_what_only_the_top_level_says_of_the_decoder_is_heeded_too(checkpoint, target) -> None:
    """As in Unlimited-OCR's config, whose tensors are DeepSeek-OCR's."""

    def window(config: dict[str, Any]) -> None:
        config["sliding_window"] = 128
        config["language_config"]["sliding_window"] = None

    edit_json(checkpoint / "config.json", window)
    assert "sliding_window is 128, which this exporter does not compute" in refused(checkpoint, target)


def test_the_new_spelling_of_the_rotary_base_is_the_old_one(checkpoint, target) -> None:
    def spelt(**values: Any) -> bytes:
        edit_json(checkpoint / "config.json", lambda config: config["language_config"].update(values))
        export(checkpoint, target, force=True)
        return (target / "decoder.onnx").read_bytes() + (target / "decoder.onnx.data").read_bytes()

    old = spelt(rope_theta=7777.0)
    assert spelt(rope_theta=10_000.0, rope_parameters={"rope_type": "default", "rope_theta": 7777.0}) == old
    assert spelt(rope_parameters=None) != old


@pytest.mark.parametrize("value", ["many", -2, {}, 1.5])
@pytest.mark.parametrize(
    "path",
    [
        *(("language_config", key) for key in DECODER_KEYS[2:]), ("language_config", "n_routed_experts"),
        ("language_config",), ("vision_config",), ("vision_config", "image_size"), ("vision_config", "width"),
        ("vision_config", "width", "sam_vit_b", "layers"), ("vision_config", "width", "sam_vit_b", "heads"),
        ("vision_config", "width", "sam_vit_b", "global_attn_indexes"),
        ("vision_config", "width", "sam_vit_b", "downsample_channels"),
        ("vision_config", "width", "clip-l-14-224", "heads"), ("vision_config", "width", "clip-l-14-224", "patch_size"),
    ],
    ids=lambda path: path[-1] if isinstance(path, tuple) else None,
)  # fmt: skip
def test_a_config_value_of_the_wrong_kind_is_an_export_error_and_no_crash(checkpoint, target, path, value) -> None:
    def spoil(config: dict[str, Any]) -> None:
        for name in path[:-1]:
            config = config[name]
        config[path[-1]] = value

    edit_json(checkpoint / "config.json", spoil)
    if value == {} and path[-1] in ("n_routed_experts", "language_config"):
        return  # as good as not there: a dense model, and values that stand at the top level too
    refused(checkpoint, target)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "model.safetensors.index.json"])
def test_a_damaged_json_file_is_named(checkpoint, target, name, content) -> None:
    (checkpoint / name).write_text(content)
    assert name in refused(checkpoint, target)


def test_a_missing_config_is_named(checkpoint, target) -> None:
    (checkpoint / "config.json").unlink()
    assert "config.json is missing" in refused(checkpoint, target)


def test_a_tokenizer_that_is_missing_damaged_without_image_token_or_too_large_is_refused(checkpoint, target) -> None:
    whole = (checkpoint / "tokenizer.json").read_text()
    (checkpoint / "tokenizer.json").write_text(whole.replace('"<image>"', '"<picture>"'))
    assert "no token '<image>'" in refused(checkpoint, target)
    (checkpoint / "tokenizer.json").write_text(whole[: len(whole) // 2])
    assert "tokenizer.json" in refused(checkpoint, target)
    (checkpoint / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refused(checkpoint, target)
    large = Tokenizer.from_str(whole)
    large.add_tokens([f"word{i}" for i in range(40)])
    large.save(str(checkpoint / "tokenizer.json"))
    assert "token ids up to 310 and the model only 300 rows" in refused(checkpoint, target)


def test_an_unknown_family_is_refused(checkpoint, target) -> None:
    assert "'other-ocr'; known are deepseek-ocr" in refused(checkpoint, target, family="other-ocr")


# Files that replace the source's own.


def test_other_weights_tokenizer_and_config_are_used_when_named(tmp_path, checkpoint, target) -> None:
    other = write_random_checkpoint(tmp_path / "other", TINY, seed=5)
    edit_json(other / "config.json", lambda config: config["language_config"].update(num_experts_per_tok=1))
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save(str(tmp_path / "mine.json"))
    manifest, _ = export(
        checkpoint, target, weights=other / WEIGHTS, config_file=other / "config.json",
        tokenizer_file=tmp_path / "mine.json",
    )  # fmt: skip
    manifest.verify(target)
    export(other, target.with_name("expected"))
    assert graph_bytes(target) == graph_bytes(target.with_name("expected"))
    assert (target / "config.json").read_bytes() == (other / "config.json").read_bytes()
    assert (target / "tokenizer.json").read_bytes() == (tmp_path / "mine.json").read_bytes()


# Families and architectures.


def with_architectures(checkpoint: Path, folder: Path, value: Any) -> Path:
    changed = folder / "config.json"
    changed.write_text(json.dumps({**json.loads((checkpoint / "config.json").read_text()), "architectures": value}))
    return changed


@pytest.mark.parametrize(
    ("architectures", "said"),
    [
        (["DeepseekOCR2ForCausalLM"], "family 'deepseek-ocr-2', and 'deepseek-ocr' was asked for"),
        (["PaddleOCRVLForConditionalGeneration"], 'kind = "paddleocr-vl"'),
        (["DeepseekVL3ForCausalLM"], "the nearest is deepseek-ocr"),
        (["LlamaForCausalLM"], "paddleocr-vl \\(PaddleOCRVLForConditionalGeneration"),
        ([], "architectures is \\[\\]; expected a list of one name"),
        (7, "architectures is 7"),
    ],
)
def test_an_architecture_of_another_family_is_answered_with_the_families(
    checkpoint: Path, target: Path, tmp_path: Path, architectures: Any, said: str
) -> None:
    with pytest.raises(ExportError, match=said):
        export(checkpoint, target, config_file=with_architectures(checkpoint, tmp_path, architectures))
    assert not target.exists()


def test_a_config_that_names_no_architecture_is_taken_for_what_was_asked(
    checkpoint: Path, target: Path, tmp_path: Path
) -> None:
    export(checkpoint, target, config_file=with_architectures(checkpoint, tmp_path, None))
    assert Manifest.load(target).family == "deepseek-ocr"


def test_a_family_without_an_exporter_is_answered_with_those_that_have_one(checkpoint: Path, target: Path) -> None:
    with pytest.raises(ExportError, match=r"'hunyuan-ocr'; known are deepseek-ocr, .*paddleocr-vl"):
        export(checkpoint, target, family="hunyuan-ocr")
