"""LoRA adapters are merged as PEFT merges them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file

from export.checkpoint import Checkpoint
from export.export_errors import ExportError
from export.pipeline import Job, export_model
from export.source import Source
from tests.export.jobs import TINY, WEIGHTS
from tools.checkpoints import write_random_checkpoint

PATCH = "model.sam_model.patch_embed.proj"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "checkpoint", TINY)


def as_modules(tensors: dict[str, np.ndarray]) -> torch.nn.Module:
    """A tree of torch's layers under the checkpoint's names: what PEFT looks at when it attaches and merges."""
    root = torch.nn.Module()
    for name, array in tensors.items():
        *path, last, kind = name.split(".")
        if kind != "weight" or array.ndim not in (2, 4):
            continue
        place = root
        for step in path:
            if not hasattr(place, step):
                place.add_module(step, torch.nn.Module())
            place = getattr(place, step)
        weight = torch.from_numpy(array.astype(np.float32))
        layer: torch.nn.Module
        if last == "embed_tokens":
            layer = torch.nn.Embedding(*weight.shape)
        elif weight.ndim == 2:
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        else:
            layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], bias=False)
        layer.weight.data.copy_(weight)  # type: ignore[operator,union-attr]  # a Parameter, says torch only at run time
        place.add_module(last, layer)
    return root


def train(checkpoint: Path, folder: Path, **options: Any) -> dict[str, np.ndarray]:
    """Save an adapter of random numbers; returns PEFT's own merged weights under the checkpoint's names."""
    torch.manual_seed(5)
    model = get_peft_model(as_modules(load_file(checkpoint / WEIGHTS)), LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * (0.3 if "lora" in name else 1.0)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    merged = model.merge_and_unload()
    return {name: parameter.detach().numpy() for name, parameter in merged.named_parameters()}


OPTIONS = [
    {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    {"r": 8, "lora_alpha": 2, "use_rslora": True, "target_modules": ["gate_proj", "gate", "lin1", "fc1"]},
    {"r": 2, "lora_alpha": 8, "target_modules": ["embed_tokens", "proj", "lm_head"]},
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"], "rank_pattern": {"q_proj": 3},
     "alpha_pattern": {r"model\.layers\.0\.self_attn\.o_proj": 32}},
    {"r": 2, "lora_alpha": 4, "target_modules": ["k_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_every_weight_is_what_peft_merges(checkpoint: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    expected = train(checkpoint, tmp_path / "adapter", **options)
    plain, merged = Checkpoint(checkpoint), Checkpoint(checkpoint, adapter=tmp_path / "adapter")
    changed = 0
    for name in plain.tensors:
        before, after = plain.load(name).astype(np.float32), merged.load(name).astype(np.float32)
        np.testing.assert_allclose(after, expected.get(name, before), rtol=0, atol=2e-6, err_msg=name)
        changed += not np.array_equal(before, after)
    assert changed >= 2


def test_an_export_with_an_adapter_is_the_export_of_the_merged_model(checkpoint: Path, tmp_path: Path) -> None:
    expected = train(checkpoint, tmp_path / "adapter", **OPTIONS[0])

    def export(name: str, adapter: Path | None) -> Path:
        source = Source(checkpoint, str(checkpoint), None, "directory")
        export_model(Job("m", "deepseek-ocr", source, "f32", tmp_path / name, adapter=adapter), lambda line: None)
        return tmp_path / name

    ours = export("ours", tmp_path / "adapter")
    weights = load_file(checkpoint / WEIGHTS)
    save_file({name: expected.get(name, array.astype(np.float32)) for name, array in weights.items()},
              checkpoint / WEIGHTS)  # fmt: skip
    theirs = export("theirs", None)
    for data in theirs.glob("*.data"):
        one, other = (np.frombuffer((folder / data.name).read_bytes(), np.float32) for folder in (ours, theirs))
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("prefix", ["base_model.model.model.", "base_model.model.module."])
def test_an_adapter_may_spell_names_as_another_program_does(checkpoint: Path, tmp_path: Path, prefix: str) -> None:
    adapter = tmp_path / "adapter"
    expected = train(checkpoint, adapter, **OPTIONS[0])
    file = adapter / "adapter_model.safetensors"
    moved = {
        name.replace("base_model.model.model.layers", "base_model.model.model.language_model.layers"): array
        for name, array in load_file(file).items()
    }
    save_file(moved, file)
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_allclose(Checkpoint(checkpoint, adapter=adapter).load(name), expected[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora is True; this option is not computed here"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'; it changes the weights"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is"),
    ],
)
def test_what_a_merge_would_get_wrong_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    train(checkpoint, tmp_path / "adapter", **OPTIONS[0])
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ExportError) as caught:
        Checkpoint(checkpoint, adapter=tmp_path / "adapter")
    assert f"adapter_config.json: {words}" in str(caught.value)


def test_an_adapter_of_another_model_is_refused_with_what_it_was_trained_on(checkpoint: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    train(checkpoint, adapter, **OPTIONS[0])
    config, file = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "acme/other"}))
    tensors = load_file(file)
    save_file({name.replace("q_proj", "wq"): array for name, array in tensors.items()}, file)
    with pytest.raises(ExportError, match=r"changes .*wq, which the model does not have; .* trained on acme/other"):
        Checkpoint(checkpoint, adapter=adapter)
    save_file({name: array[:, :-1] if "q_proj.lora_A" in name else array for name, array in tensors.items()}, file)
    with pytest.raises(ExportError, match=r"the change of .*q_proj has the shape \[\d+, \d+\], the model's tensor"):
        Checkpoint(checkpoint, adapter=adapter).load("model.layers.0.self_attn.q_proj.weight")
    save_file({name: array for name, array in tensors.items() if "lora_B" not in name}, file)
    with pytest.raises(ExportError, match="has only half of the change of"):
        Checkpoint(checkpoint, adapter=adapter)
    with pytest.raises(ExportError, match=r"is no adapter as PEFT saves it: it lacks adapter_config\.json and"):
        Checkpoint(checkpoint, adapter=checkpoint)
