"""Loads a published checkpoint into transformers' module, and accounts for every tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from transformers.utils import logging as transformers_logging

from models.layout.detectors import KnownDetector
from models.layout.labels import LABELS
from models.layout.rules import DetectionRules

from ..checkpoint import Checkpoint
from ..export_errors import ExportError

_CLASSES = {
    "pp_doclayout_v2": "PPDocLayoutV2ForObjectDetection",
    "pp_doclayout_v3": "PPDocLayoutV3ForObjectDetection",
}
# Not stored: a counter of training, and V2's position tables, which its order network does not use.
_NEVER_STORED = ("num_batches_tracked", "rel_pos_x_bias", "rel_pos_y_bias")
# Heads that V3 shares, and that older programs saved twice.
_TIED = {"decoder.class_embed": "enc_score_head", "decoder.bbox_embed": "enc_bbox_head"}


@dataclass(frozen=True)
class Loaded:
    """A detector, ready to be traced.

    model : transformers' module in float32. rules : its vendor's rules for boxes, with the checkpoint's own thresholds,
    if any.
    """

    model: Any
    detector: KnownDetector
    rules: DetectionRules


def load_detector(checkpoint: Checkpoint, detector: KnownDetector) -> Loaded:
    """Load a checkpoint into transformers' module.

    Raises
    ------
    ExportError
        for a config that the module refuses, labels other than the published ones, and tensors that are missing,
        unexpected or of another shape.
    """
    _check_labels(checkpoint, detector)
    _check_tied(checkpoint, detector)
    module = getattr(transformers, _CLASSES[detector.kind])
    log: Any = transformers_logging
    log.set_verbosity_error()  # the library would warn about values that are refused below
    log.disable_progress_bar()
    try:
        model, found = module.from_pretrained(
            checkpoint.folder, local_files_only=True, use_safetensors=True, dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # a wrong value can raise anything in the library
        raise ExportError(f"transformers cannot load {checkpoint.folder}: {error}") from error
    problems = [
        *(f"missing: {name}" for name in sorted(found["missing_keys"]) if not name.endswith(_NEVER_STORED)),
        *(f"unexpected: {name}" for name in sorted(found["unexpected_keys"]) if not name.endswith(_NEVER_STORED)),
        *(f"wrong shape: {name} is {list(is_)}, expected {list(wanted)}"
          for name, is_, wanted in sorted(found["mismatched_keys"])),
        *found["error_msgs"],
    ]  # fmt: skip
    if problems:
        shown = problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise ExportError(
            f"the tensors in {checkpoint.folder} do not fit {detector.id} as transformers "
            f"{transformers.__version__} knows it:\n  " + "\n  ".join(shown)
        )
    return Loaded(model.eval(), detector, _rules(checkpoint, detector))


def _check_labels(checkpoint: Checkpoint, detector: KnownDetector) -> None:
    """Refuse other labels: the meaning of such a detector's boxes would be unknown."""
    rows = checkpoint.shape("model.enc_score_head.weight")[0]
    if rows != len(LABELS):
        raise ExportError(
            f"{checkpoint.folder} tells {rows} kinds of blocks apart, and {detector.id} {len(LABELS)}; a detector that "
            "was trained on other labels cannot be used"
        )
    if detector.kind == "pp_doclayout_v2":
        for key in ("class_thresholds", "class_order"):
            values = checkpoint.config.get(key)
            listed = isinstance(values, list) and len(values) == len(LABELS)
            if not listed or not all(isinstance(value, int | float) for value in values or ()):
                raise ExportError(
                    f"{checkpoint.folder / 'config.json'}: {key} is {values!r:.80}; {detector.id} needs a number for "
                    f"each of its {len(LABELS)} labels"
                )


def _check_tied(checkpoint: Checkpoint, detector: KnownDetector) -> None:
    """Refuse heads that differ between V3's encoder and decoder, which share them."""
    if detector.kind != "pp_doclayout_v3":
        return
    for name in checkpoint.tensors:
        for copy, original in _TIED.items():
            if f"model.{copy}." not in name:
                continue
            first = name.replace(copy, original)
            if not checkpoint.has(first) or not np.array_equal(checkpoint.load(name), checkpoint.load(first)):
                raise ExportError(
                    f"{checkpoint.folder}: {name} and {first} are one tensor in {detector.id}, and differ here; the "
                    "checkpoint was written with heads that were never loaded (transformers 5.3 to 5.5 did that)"
                )


def _rules(checkpoint: Checkpoint, detector: KnownDetector) -> DetectionRules:
    """The vendor's rules; V2's checkpoint has its own thresholds by label."""
    values = checkpoint.config.get("class_thresholds")
    if detector.kind != "pp_doclayout_v2" or values is None:
        return detector.rules
    usual = detector.rules.threshold
    own = {label: float(value) for label, value in zip(LABELS, values, strict=True) if value != usual}
    return detector.rules.model_copy(update={"thresholds": own})
