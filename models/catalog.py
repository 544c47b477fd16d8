"""The models this version knows by name: where each comes from, which family reads it, and its own defaults.

Read by the configuration (which lays config.toml's entries over it), the exporter and the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import ConfigError

DTYPES = ("f32", "f16", "bf16", "q8", "q4")

# Families that can be exported and served. A name may be known (below) before its family is.
SUPPORTED_FAMILIES = frozenset({"deepseek-ocr", "paddleocr-vl"})

# Spelling in config.toml -> family. deepseek-ocr.rs writes deepseek, paddle_ocr_vl, dots_ocr, glm_ocr.
_FAMILY_SPELLINGS = {
    "deepseek": "deepseek-ocr",
    "deepseek-ocr": "deepseek-ocr",
    "deepseek-ocr-2": "deepseek-ocr-2",
    "deepseek-ocr2": "deepseek-ocr-2",
    "paddle-ocr-vl": "paddleocr-vl",
    "paddleocr-vl": "paddleocr-vl",
    "dots-ocr": "dots-ocr",
    "glm-ocr": "glm-ocr",
}

# Parameters below which a model is served in float32 on a CPU.
SMALL_MODEL = 100_000_000

# Suffix of a model id -> dtype of that variant. The -k suffixes are deepseek-ocr.rs's.
_VARIANTS = {"-q4": "q4", "-q8": "q8", "-q4k": "q4", "-q6k": "q8", "-q8k": "q8"}

_TINY_OCR = Path(__file__).parent / "tiny_ocr"  # packaged beside this module


@dataclass(frozen=True)
class ModelEntry:
    """One model that can be asked for by its id."""

    id: str
    family: str
    source: str  # a directory in the hub's layout, or a hub id
    revision: str | None = None  # branch, tag or commit of the hub repository; None: its default branch
    dtype: str | None = None  # None: by device and size, see default_dtype
    config: Path | None = None  # these three replace the source's own file
    tokenizer: Path | None = None
    weights: Path | None = None
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # inference settings
    task: str | None = None  # what an image without a prompt is read for; None: the family's default
    description: str = ""


CATALOG: Mapping[str, ModelEntry] = MappingProxyType(
    {
        entry.id: entry
        for entry in (
            ModelEntry(
                "deepseek-ocr",
                "deepseek-ocr",
                "deepseek-ai/DeepSeek-OCR",
                description="DeepSeek-OCR: documents, tables, figures and grounding; 3 B parameters, 0.6 B active",
            ),
            ModelEntry(
                "tiny-ocr",
                "deepseek-ocr",
                str(_TINY_OCR),
                # A config.toml that deepseek-ocr.rs wrote sets 1024 and 640 for every model; an entry's defaults win.
                defaults=MappingProxyType({"base_size": 256, "image_size": 192}),
                task="free",  # the prompt that it was trained on
                description="built-in miniature: a demonstration and a test instrument, not a product for documents",
            ),
            ModelEntry("deepseek-ocr-2", "deepseek-ocr-2", "deepseek-ai/DeepSeek-OCR-2"),
            ModelEntry(
                "paddleocr-vl",
                "paddleocr-vl",
                "PaddlePaddle/PaddleOCR-VL",
                description="PaddleOCR-VL: text, tables, formulas and charts, best in single blocks; 0.9 B parameters",
            ),
            ModelEntry("dots-ocr", "dots-ocr", "rednote-hilab/dots.ocr"),
            ModelEntry("glm-ocr", "glm-ocr", "zai-org/GLM-OCR"),
        )
    }
)


def normalise_family(spelling: str) -> str | None:
    """The family that ``spelling`` names in any accepted way, or None when there is no such family."""
    return _FAMILY_SPELLINGS.get(spelling.strip().lower().replace("_", "-"))


def family_spellings() -> list[str]:
    """What ``kind`` may say, for error messages."""
    return sorted(_FAMILY_SPELLINGS)


def split_variant(model_id: str) -> tuple[str, str] | None:
    """``deepseek-ocr-q8`` -> ``("deepseek-ocr", "q8")``; None for an id that names no variant."""
    for suffix, dtype in _VARIANTS.items():
        if model_id.endswith(suffix) and len(model_id) > len(suffix):
            return model_id.removesuffix(suffix), dtype
    return None


def require_supported(entry: ModelEntry) -> None:
    """Check that the entry can be exported and served. Called when it is used, not when it is listed.

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
    """Check that a device computes in a dtype, before anything is exported for it.

    Raises
    ------
    ConfigError
        saying what to take instead.
    """
    if dtype == "bf16" and device != "cuda":
        better = "q8" if device == "cpu" else "f16"
        raise ConfigError(
            f"dtype bf16 is for --device cuda; {device} has no products in bfloat16: take --dtype {better} there, or "
            "f32, which holds the same weights exactly"
        )


def default_dtype(device: str, parameters: int | None = None) -> str:
    """The dtype that is exported and served when neither flag nor entry nor config.toml names one.

    device : the resolved name. parameters : of the model; None, where nobody knows, counts as large.

    GPUs compute in float16. On a CPU every token reads all its weights from memory, so a large model is kept in 8 bits;
    a small one fits into the caches, and stays exact.
    """
    if device != "cpu":
        return "f16"
    return "f32" if parameters is not None and parameters < SMALL_MODEL else "q8"
