"""Where everything stands: tokens in the decoder (time, row, column), patches in the vision tower (row, column)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from models.family import Feeds, Positions, PreparedImage, kept
from models.patches import patch_rotary
from models.resampling import linear_rows

from .images import ImageRules


def token_positions(prompt_ids: Sequence[int], image_token: int, images: Sequence[PreparedImage]) -> Positions:
    """Time, row and column of each token of a prompt.

    A text token has the same number in all three. An image that begins at position p stays at time p, and its features
    spread over rows and columns from p on; the text after it goes on behind the largest of those numbers.
    """
    pieces, position, start = [], 0, 0
    is_image = np.asarray(prompt_ids) == image_token
    for image in images:
        begin = start + int(is_image[start:].argmax())
        pieces.append(np.tile(np.arange(position, position + begin - start), (3, 1)))
        position += begin - start
        rows, columns = image.grid
        row, column = np.divmod(np.arange(rows * columns), columns)
        pieces.append(position + np.stack([np.zeros_like(row), row, column]))
        position += max(rows, columns)
        start = begin + rows * columns
    rest = len(prompt_ids) - start
    pieces.append(np.tile(np.arange(position, position + rest), (3, 1)))
    return Positions(np.concatenate(pieces, axis=1), position + rest)


@lru_cache(maxsize=2)  # the tables of the largest page have 4 MB
def page_inputs(rows: int, columns: int, rules: ImageRules) -> Feeds:
    """What the vision graph needs beside the pixels, for a page of so many patches (see export.siglip_vision)."""
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
