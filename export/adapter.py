"""Merges a LoRA adapter in PEFT's format into the weights while they are streamed.

W + scale * B A, where scale is lora_alpha / r (rank-stabilised: lora_alpha / sqrt(r)); see PEFT, tuners/lora/layer.py,
get_delta_weight. Whole tensors in the adapter (``modules_to_save``) replace the model's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from . import names
from .export_errors import ExportError
from .json_files import read_json
from .weight_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from .weights import as_float32

_PREFIX = "base_model.model."
_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<half>[AB])(\.default)?(\.weight)?")

# Options that the merge follows, or that concern training only. Other options are refused when set.
_UNDERSTOOD = {
    "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights",
    "peft_type", "peft_version", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "megatron_core",
    "qalora_group_size", "eva_config", "ensure_weight_tying", "runtime_config",
}  # fmt: skip
# Initialisations that change the model's own weights: the adapter belongs to changed weights, which are not saved.
_ALTERS_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")

_ROWS = 4096  # rows merged at once


@dataclass(frozen=True)
class _Pair:
    """The two factors of one tensor's change, and the file that holds them."""

    a: str
    b: str
    embedding: bool


class Adapter:
    """One adapter's folder. Opening reads only headers and the config."""

    def __init__(self, folder: Path) -> None:
        """Open.

        Raises
        ------
        ExportError
            when the folder has no adapter, or one that cannot be merged exactly; the message names the option.
        """
        self.folder = folder.expanduser()
        self.file = self.folder / ADAPTER_WEIGHTS
        self.files = [self.folder / ADAPTER_CONFIG, self.file]
        missing = [file.name for file in self.files if not file.is_file()]
        if missing:
            raise ExportError(f"{folder} is no adapter as PEFT saves it: it lacks {' and '.join(missing)}")
        self._config = _checked(read_json(self.folder / ADAPTER_CONFIG), self.folder / ADAPTER_CONFIG)
        self.replaced: dict[str, str] = {}  # a tensor's name in the adapter's file -> in the model
        self._pairs = self._read()

    def attach(self, tensors: Iterable[str]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """Functions that merge the adapter into the tensors that it changes.

        tensors : the model's own names; the adapter may spell them in another known way.

        Raises
        ------
        ExportError
            when the model has no such tensor.
        """
        place = names.finder(tensors)
        merges: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
        for module, pair in self._pairs.items():
            name = place(f"{module}.weight")
            if name is None:
                base = self._config.get("base_model_name_or_path")
                raise ExportError(
                    f"{self.file} changes {module}, which the model does not have; the adapter was trained on "
                    f"{base or 'another model'}"
                )
            merges[name] = partial(self._merged, module=module, pair=pair)
        return merges

    def _merged(self, array: np.ndarray, module: str, pair: _Pair) -> np.ndarray:
        """The tensor with its change added, in float32, of the same shape."""
        with safe_open(self.file, framework="np") as opened:
            a, b = as_float32(opened.get_tensor(pair.a)), as_float32(opened.get_tensor(pair.b))
        left, right = (a.T, b.T) if pair.embedding else (b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1))
        if (left.shape[0], right.shape[1]) != (array.shape[0], math.prod(array.shape[1:])):
            raise ExportError(
                f"{self.file}: the change of {module} has the shape [{left.shape[0]}, {right.shape[1]}], the model's "
                f"tensor {list(array.shape)}; the adapter was trained on another model"
            )
        left = left * np.float32(self._scale(module, rank=right.shape[0]))
        merged = np.array(as_float32(array))
        flat = merged.reshape(merged.shape[0], -1)
        for start in range(0, len(flat), _ROWS):
            flat[start : start + _ROWS] += left[start : start + _ROWS] @ right
        return merged

    def _scale(self, module: str, rank: int) -> float:
        patterns: Mapping[str, Any] = self._config.get("alpha_pattern") or {}
        key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
        alpha = float(self._config["lora_alpha"] if key is None else patterns[key])
        return alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank

    def _read(self) -> dict[str, _Pair]:
        halves: dict[tuple[str, bool], dict[str, str]] = {}
        with safe_open(self.file, framework="np") as opened:
            for stored in opened.keys():  # noqa: SIM118 - a safe_open handle is no dict
                name = stored.removeprefix(_PREFIX)
                if match := _PAIR.fullmatch(name):
                    halves.setdefault((match["module"], bool(match["embedding"])), {})[match["half"]] = stored
                elif ".lora_" in name or "trainable_tokens" in name:
                    raise ExportError(f"{self.file} has {stored}, which is not merged here; merge it with PEFT first")
                else:
                    self.replaced[stored] = name.replace(".modules_to_save.default", "").replace(".base_layer", "")
        lone = next((module for (module, _), found in halves.items() if len(found) < 2), None)
        if lone is not None:
            raise ExportError(f"{self.file} has only half of the change of {lone}; save the adapter again")
        return {module: _Pair(found["A"], found["B"], embedding) for (module, embedding), found in halves.items()}


def _checked(config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    def refuse(key: str, why: str) -> ExportError:
        return ExportError(f"{path}: {key} is {config.get(key)!r}; {why}: merge it with PEFT (merge_and_unload) first")

    if config.get("peft_type") != "LORA":
        raise refuse("peft_type", "only LORA is merged here")
    if not isinstance(config.get("lora_alpha"), int | float):
        raise refuse("lora_alpha", "a number is needed")
    if config.get("bias", "none") != "none":
        raise refuse("bias", "trained biases are not merged here")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.startswith(_ALTERS_THE_MODEL):
        raise refuse("init_lora_weights", "it changes the weights that the adapter is added to")
    for key, value in config.items():
        if value and key not in _UNDERSTOOD and not key.startswith("unsloth"):
            raise refuse(key, "this option is not computed here")
    return config
