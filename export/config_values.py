"""Reading a checkpoint's JSON files with errors that name the key, its value and what this exporter knows.

Every family's exporter reads sizes and rules by these functions, so that no value that changes the arithmetic is
ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from models.families import by_architecture, unknown_architecture
from models.registration import Registration

from .export_errors import ExportError
from .json_files import read_json


def check_architecture(config: Mapping[str, Any], family: Registration) -> None:
    """Check that a config.json is the family's; one without an architecture passes.

    Raises
    ------
    ExportError
        naming the right family, or all families and the nearest.
    """
    names = config.get("architectures")
    if names is None or (isinstance(names, list) and any(name in family.architectures for name in names)):
        return
    name = names[0] if isinstance(names, list) and names else names
    if not isinstance(name, str):
        raise ExportError(f"config.json: architectures is {names!r:.80}; expected a list of one name")
    other = by_architecture(name)
    if other is None:
        raise ExportError(f"config.json: {unknown_architecture(name)}")
    raise ExportError(
        f"config.json: architecture {name!r} is of the family {other.id!r}, and {family.id!r} was asked for; set "
        f'kind = "{other.id}" in the model\'s entry of config.toml, or export {other.models[0].id} with this --source'
    )


# Features that configs of fine-tunes and relatives may ask for, and that no family computes. Harmless values are
# listed; a family that does compute a feature leaves its key out of the check.
_NOTHING = (None, False, 0, 0.0)
_ONE = (None, 1, 1.0)
_UNCOMPUTED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("sliding_window", "sliding_window_size", "use_sliding_window", "attention_chunk_size"), _NOTHING),
    **dict.fromkeys(("use_qk_norm", "qk_norm", "qk_layernorm", "post_norm", "sandwich_norm"), _NOTHING),
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_bias", "qkv_bias", "lm_head_bias"), _NOTHING),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"), _NOTHING),
    **dict.fromkeys(("logits_scaling", "logit_scale", "embedding_multiplier", "residual_multiplier"), _ONE),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct", "attention_multiplier"), _ONE),
    "use_mla": _NOTHING,
    "norm_type": (None, "rmsnorm", "rms_norm", "RMSNorm"),
    "position_embedding_type": (None, "rope", "rotary", "absolute"),
}
_ROPES = ("rope_scaling", "rope_parameters")


def check_decoder(
    config: Mapping[str, Any], *, rope_types: tuple[str, ...] = ("default",), computed: Collection[str] = ()
) -> None:
    """Refuse values that change a decoder's arithmetic without changing a tensor: windows, norms, biases, scaling.

    Parameters
    ----------
    config
        the decoder's part of config.json.
    rope_types
        kinds of rotary positions that the family computes, in the old spelling or the new one.
    computed
        keys that the family checks by itself.

    Raises
    ------
    ExportError
        naming the key and its value.
    """
    switched_off = config.get("use_sliding_window") is False  # Qwen's configs name a window that is off
    for key, values in _UNCOMPUTED.items():
        off = key == "sliding_window" and switched_off
        if key not in computed and not off and config.get(key) not in values:
            raise ExportError(f"config.json: {key} is {config[key]!r}, which this exporter does not compute")
    layers = config.get("layer_types") or ()
    if "layer_types" not in computed and any(layer != "full_attention" for layer in layers):
        raise ExportError(f"config.json: layer_types is {layers!r:.200}; this exporter knows 'full_attention' only")
    activation = config.get("hidden_activation")
    if activation not in (None, config.get("hidden_act", "silu")):
        raise ExportError(f"config.json: hidden_activation is {activation!r}; this exporter knows 'silu' only")
    for key in _ROPES:
        rope = config.get(key) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in rope_types:
            known = ", ".join(map(repr, rope_types))
            raise ExportError(
                f"config.json: {key} is {rope!r}: rope_type is {kind!r}; this exporter knows {known} only"
            )
        if rope.get("partial_rotary_factor") not in _ONE or "full_attention" in rope:
            raise ExportError(f"config.json: {key} is {rope!r}, which this exporter does not compute")


def check_values(config: Mapping[str, Any], accepted: Mapping[str, tuple[Any, ...]], where: str) -> None:
    """Refuse a value that the graphs do not compute.

    accepted : key -> values that the graphs compute, the default first.

    Raises
    ------
    ExportError
        naming the key and its value.
    """
    for key, values in accepted.items():
        if config.get(key, values[0]) not in values:
            raise ExportError(f"{where}: {key} is {config[key]!r}; this exporter knows {values[0]!r} only")


def required(config: Mapping[str, Any], key: str) -> Any:
    """The value of a required key.

    Raises
    ------
    ExportError
        when the key is missing.
    """
    if config.get(key) is None:
        raise ExportError(f"config.json has no {key}; is this a checkpoint of another family?")
    return config[key]


def size(config: Mapping[str, Any], key: str) -> int:
    """A whole number of at least 1.

    Raises
    ------
    ExportError
        when the key is missing, or has another value.
    """
    value = required(config, key)
    if type(value) is not int or value < 1:
        raise ExportError(f"config.json: {key} is {value!r}; expected a whole number of at least 1")
    return value


def check_width(vision: Mapping[str, Any], key: str, hidden: int) -> None:
    """Refuse a tower whose features, as ``vision_config`` says, are not as wide as the decoder.

    Raises
    ------
    ExportError
        naming the key and both widths.
    """
    if (width := size(vision, key)) != hidden:
        raise ExportError(f"config.json: vision_config: {key} is {width}, and the decoder is {hidden} wide")


def first(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)


def rope_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of rotary positions under both key names; the newer one wins."""
    return {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}


def rope_theta(config: Mapping[str, Any], default: float) -> float:
    """The base of rotary positions, from any of its places."""
    return float(rope_values(config).get("rope_theta") or config.get("rope_theta", default))


def checked_part(config: Mapping[str, Any], key: str, accepted: Mapping[str, tuple[Any, ...]]) -> Mapping[str, Any]:
    """A required part of config.json, whose values are checked by ``check_values``.

    Raises
    ------
    ExportError
        when the part is missing or has another value.
    """
    part: Mapping[str, Any] = required(config, key)
    check_values(part, accepted, f"config.json: {key}")
    return part


def optional_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file."""
    return read_json(path) if path.is_file() else {}
