"""Inputs of the vision graph beside a page's pixels: positions of the patches."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from models.family import Feeds, kept
from models.patches import patch_rotary
from models.resampling import linear_rows

from .images import ImageRules


@lru_cache(maxsize=2)  # the tables of the largest page have 4 MB
def page_inputs(rows: int, columns: int, rules: ImageRules) -> Feeds:
    """Inputs of the vision graph beside the pixels, for ``rows`` x ``columns`` patches (see export.siglip_vision)."""
    cos, sin = patch_rotary(rows, columns, rules)
    merge = rules.merge_size
    return kept(
        {
            "position_rows": linear_rows(rules.grid, rows),
            "position_columns": linear_rows(rules.grid, columns),
            "rotary_cos": cos,
            "rotary_sin": sin,
            "merge_shape": np.array([rows // merge, merge, columns // merge, merge, -1]),
        }
    )
