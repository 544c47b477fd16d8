"""Recognises and refuses checkpoints whose weights are quantised already.

Exports are quantised from the published weights: a second rounding would add to the error, and each of these formats
packs its numbers differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .export_errors import ExportError

# Suffixes of tensor names that only these formats have.
_MARKS: Mapping[str, tuple[str, ...]] = {
    "GPTQ or AWQ": (".qweight", ".qzeros", ".g_idx"),
    "bitsandbytes": (".absmax", ".quant_map", ".nested_absmax", ".SCB", ".weight_format"),
    "compressed-tensors": (".weight_packed", ".weight_shape", ".weight_zero_point"),
    "fp8": (".weight_scale", ".weight_scale_inv", ".input_scale", ".scale_weight"),
    "MLX": (".scales",),
}
_MARKS_INSIDE = {"bitsandbytes": ".quant_state.bitsandbytes__"}
_TYPES = {"F8_E4M3": "fp8", "F8_E5M2": "fp8", "F8_E8M0": "fp8", "F4": "fp4"}
_INTEGERS = ("U8", "I8", "U32", "I32")
_NAMES = {"bitsandbytes": "bitsandbytes", "awq": "AWQ", "gptq": "GPTQ", "fp8": "fp8", "fbgemm_fp8": "fp8"}


def refuse_quantised(config: Mapping[str, Any], tensors: Mapping[str, str], where: str) -> bool:
    """Check that the weights are plain numbers.

    Parameters
    ----------
    config
        config.json.
    tensors
        type of each tensor in safetensors' spelling, by name.
    where
        the folder or file, for the message.

    Returns
    -------
    Whether the config asks to quantise plain weights on loading, which is not done here.

    Raises
    ------
    ExportError
        naming the format, a tensor, and the remedy.
    """
    settings = _settings(config)
    method = str(settings.get("quant_method") or "")
    found = _mark(tensors)
    if found is None:
        return bool(method)
    kind, name = found
    kind = _NAMES.get(method, method) or kind
    bits = settings.get("bits") or settings.get("w_bit") or (4 if settings.get("load_in_4bit") else None)
    kind += f", {bits} bits" if bits else ""
    raise ExportError(
        f"{where} holds weights that are quantised already ({kind}: {name}); take the checkpoint that they were made "
        f"from{_base(config)}, in bfloat16, float16 or float32; --dtype q8 or q4 quantises it here"
    )


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    found: Iterable[Any] = (part.get(key) for part in parts for key in ("quantization_config", "compression_config"))
    return next((settings for settings in found if isinstance(settings, dict)), {})


def _mark(tensors: Mapping[str, str]) -> tuple[str, str] | None:
    """A format and the tensor that shows it."""
    for name, dtype in tensors.items():
        for kind, ends in _MARKS.items():
            if name.endswith(ends) and not (kind == "MLX" and f"{name.removesuffix('.scales')}.qweight" in tensors):
                return kind, name
        for kind, inside in _MARKS_INSIDE.items():
            if inside in name:
                return kind, name
        if dtype in _TYPES:
            return _TYPES[dtype], f"{name} is {dtype}"
    weights = {name: dtype for name, dtype in tensors.items() if name.endswith(".weight")}
    packed = [name for name, dtype in weights.items() if dtype in _INTEGERS]
    # A single such tensor is damage, which the check of shapes and types reports.
    return ("packed integers", f"{packed[0]} is {weights[packed[0]]}") if 2 * len(packed) > len(weights) else None


def _base(config: Mapping[str, Any]) -> str:
    """The base model that the config names, if any."""
    name = config.get("_name_or_path")
    return f" ({name})" if isinstance(name, str) and "/" in name else ""
