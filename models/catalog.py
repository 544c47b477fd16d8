"""The models that this version knows by name: source, family and defaults of each.

Read by the configuration (which lays config.toml's entries over these), the exporter and the server. The entries are in
the families' registrations.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .families import FAMILIES
from .model_errors import ConfigError
from .registration import ModelEntry

DTYPES = ("f32", "f16", "bf16", "q8", "q4")

# Families that can be exported and served; others are known by name only.
SUPPORTED_FAMILIES = frozenset(family.id for family in FAMILIES.values() if family.supported)

# Parameters below which a model is served in float32 on a CPU.
SMALL_MODEL = 100_000_000

# Suffix of a model id -> dtype of that variant. The -k suffixes are deepseek-ocr.rs's.
_VARIANTS = {"-q4": "q4", "-q8": "q8", "-q4k": "q4", "-q6k": "q8", "-q8k": "q8"}

CATALOG: Mapping[str, ModelEntry] = MappingProxyType(
    {model.id: model for family in FAMILIES.values() for model in family.models}
)


def normalise_family(spelling: str, model_id: str | None = None) -> str | None:
    """The family that ``spelling`` names in any accepted way, or None when there is no such family.

    model_id : the model that has this kind; deepseek-ocr.rs writes one kind for both generations of DeepSeek-OCR, and
    the model's id says which is meant.
    """
    kind = spelling.strip().lower().replace("_", "-")
    named = [family.id for family in FAMILIES.values() if kind in (family.id, *family.kinds)]
    entry = CATALOG.get(model_id) if model_id is not None else None
    if entry is not None and entry.family in named:
        return entry.family
    return named[0] if named else None


def family_spellings() -> list[str]:
    """The values of ``kind``, for error messages."""
    return sorted({spelling for family in FAMILIES.values() for spelling in (family.id, *family.kinds)})


def split_variant(model_id: str) -> tuple[str, str] | None:
    """``deepseek-ocr-q8`` -> ``("deepseek-ocr", "q8")``; None for an id that names no variant."""
    for suffix, dtype in _VARIANTS.items():
        if model_id.endswith(suffix) and len(model_id) > len(suffix):
            return model_id.removesuffix(suffix), dtype
    return None


def require_supported(entry: ModelEntry) -> None:
    """Check that the entry can be exported and served. Called on use, not for listings.

    Raises
    ------
    ConfigError
        naming the family and those that this version supports.
    """
    if entry.family not in SUPPORTED_FAMILIES:
        raise ConfigError(
            f"model {entry.id!r} is of the family {entry.family!r}, which this version does not support yet; "
            f"supported: {', '.join(sorted(SUPPORTED_FAMILIES))}"
        )


def require_computed(dtype: str, device: str) -> None:
    """Check that a device computes in a dtype, before an export for it.

    Raises
    ------
    ConfigError
        naming the dtypes to take instead.
    """
    if dtype == "bf16" and device != "cuda":
        better = "q8" if device == "cpu" else "f16"
        raise ConfigError(
            f"dtype bf16 is for --device cuda; {device} has no products in bfloat16: take --dtype {better} there, or "
            "f32, which holds the same weights exactly"
        )


def default_dtype(device: str, parameters: int | None = None) -> str:
    """The dtype that is exported and served when neither flag nor entry nor config.toml names one.

    device : the resolved name. parameters : of the model; None (unknown) counts as large.

    GPUs compute in float16. On a CPU every token reads all its weights from memory, so a large model is kept in 8 bits;
    a small one fits into the caches, and stays exact.
    """
    if device != "cpu":
        return "f16"
    return "f32" if parameters is not None and parameters < SMALL_MODEL else "q8"
