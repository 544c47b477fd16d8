"""The vendors' rules for the boxes of a layout detector, one set for each pipeline.

Read in PaddleX 3.7.2 (``models/layout_analysis/processors.py``, ``configs/pipelines/PaddleOCR-VL*.yaml``) and glmocr
0.1.5 (``utils/layout_postprocess_utils.py``, ``config.yaml``).
"""

from __future__ import annotations

from collections.abc import Mapping

from models.manifest import ManifestPart

from .labels import LABELS


class DetectionRules(ManifestPart):
    """Which boxes stay, and with which label.

    Labels are names of ``LABELS``. A share is of areas, 0..1; an IoU counts both edges of a box as inside of it.
    """

    threshold: float  # least score for labels that ``thresholds`` does not name
    thresholds: Mapping[str, float] = {}
    keep_at_threshold: bool = False  # a score equal to the threshold is enough
    whole_pixels: bool = True  # corners are rounded before anything is compared
    same_label_iou: float | None = 0.6  # above it, remove the weaker of two boxes of a label; None: keep
    other_label_iou: float | None = 0.98  # the same for boxes of two labels
    page_sized_images: bool = False  # images that cover nearly the whole page stay beside other boxes
    inside: float = 0.9  # share of a box that must lie in another one to count as inside
    large: frozenset[str] = frozenset()  # labels of boxes that remove every box inside
    small: frozenset[str] = frozenset()  # labels of boxes that remove the box around
    never_inside: frozenset[str] = frozenset()  # labels of boxes that count as inside of nothing
    # Of boxes inside each other keep the largest. The vendors remove all, with their content.
    keep_one: bool = True
    unclip: tuple[float, float] = (1.0, 1.0)  # ratios by which width and height of a box are stretched about its centre
    # PaddleX's last step before reading: remove blocks that show much the same, ``reference``, and slivers.
    apart: bool = False


# PaddleOCR-VL 1.0, with PP-DocLayoutV2.
PADDLEOCR_VL = DetectionRules(
    threshold=0.5,
    thresholds={
        **dict.fromkeys(
            ("display_formula", "doc_title", "inline_formula", "paragraph_title", "text", "vertical_text"), 0.4
        ),
        "seal": 0.45,
    },
    large=frozenset({"chart", "display_formula", "doc_title", "inline_formula", "paragraph_title"}),
)

# PaddleOCR-VL 1.5 and 1.6, with PP-DocLayoutV3.
PADDLEOCR_VL_15 = PADDLEOCR_VL.model_copy(update={"threshold": 0.3, "thresholds": {}})

# GLM-OCR, with PP-DocLayoutV3.
GLM_OCR = DetectionRules(
    threshold=0.3,
    keep_at_threshold=True,
    whole_pixels=False,
    inside=0.8,
    large=frozenset(LABELS) - {"reference"},
    small=frozenset({"reference"}),
    never_inside=frozenset({"image", "seal", "chart"}),
)
