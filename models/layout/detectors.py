"""The layout detectors that this version knows, by the ids of their exports and by the short names in flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from models.model_errors import ConfigError

from .rules import PADDLEOCR_VL, PADDLEOCR_VL_15, DetectionRules

NONE = "none"  # in place of a detector's name: no layout step


@dataclass(frozen=True)
class KnownDetector:
    """One published detector.

    name : short name in flags and config.toml. source : hub id of the checkpoint in transformers' format.
    kind : ``model_type`` of its config.json. rules : its vendor's rules for boxes.
    """

    id: str
    name: str
    source: str
    kind: str
    rules: DetectionRules
    description: str


DETECTORS: Mapping[str, KnownDetector] = MappingProxyType(
    {
        one.id: one
        for one in (
            KnownDetector(
                "pp-doclayout-v2", "v2", "PaddlePaddle/PP-DocLayoutV2_safetensors", "pp_doclayout_v2", PADDLEOCR_VL,
                "PP-DocLayoutV2: 25 kinds of blocks and their reading order, of PaddleOCR-VL 1.0; 54 M parameters",
            ),
            KnownDetector(
                "pp-doclayout-v3", "v3", "PaddlePaddle/PP-DocLayoutV3_safetensors", "pp_doclayout_v3", PADDLEOCR_VL_15,
                "PP-DocLayoutV3: the same 25 kinds, of PaddleOCR-VL 1.5 and 1.6 and of GLM-OCR; 33 M parameters",
            ),
        )
    }
)  # fmt: skip


def detector_of(spelling: str) -> KnownDetector:
    """The detector that a name or an id means.

    Raises
    ------
    ConfigError
        for an unknown name.
    """
    said = spelling.strip().lower()
    for detector in DETECTORS.values():
        if said in (detector.id, detector.name):
            return detector
    known = ", ".join(f"{one.name} ({one.id})" for one in DETECTORS.values())
    raise ConfigError(f"layout detector {spelling[:120]!r} is unknown; known are {known}, and {NONE}")
