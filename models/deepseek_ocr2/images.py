"""DeepSeek-OCR-2's image preparation: as DeepSeek-OCR's crop mode, with larger and fewer tiles and fixed views.

A transcription of the published code (deepseek-ai/DeepSeek-OCR-2). Views have two sizes, one for each set of queries;
queries are never interpolated.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image
from pydantic import Field

from models.deepseek_ocr.images import ViewRules, Views, crop, refuse_if_too_long, upright
from models.deepseek_ocr.positions import sam_inputs
from models.family import Feeds, kept
from models.family_settings import FamilySettings

# Added to the products of tokens that must not see each other: the lowest number of float16.
_HIDDEN = -65504.0


class ImageSettings(FamilySettings):
    """Settings of images. Only crop mode: the model's sources publish three other modes that contradict each other."""

    max_tiles: int | None = Field(None, ge=1, le=64, description="most tiles of one image", examples=[6])


class ImageRules(ViewRules):
    """The model's own image settings, from its checkpoint; kept in the manifest."""

    max_tiles: int = 6  # of 768 pixels, with a global view of 1024

    def queries(self, side: int) -> tuple[int, int]:
        """(first row, rows) of a view's queries in the table, which has the tiles' queries before the global view's."""
        tile = self.tokens_per_side(self.image_size) ** 2
        return (0, tile) if side == self.image_size else (tile, self.tokens_per_side(self.base_size) ** 2)


def make_views(image: Image.Image, settings: ImageSettings, rules: ImageRules, most_tokens: int | None = None) -> Views:
    """Orient the image by its EXIF data, convert it to RGB, and cut it as crop mode does.

    most_tokens : the model's context: prompt and answer together.

    Raises
    ------
    InvalidInput
        for an empty image, or too many tiles; raised before tiles are made.
    """

    def check(grid: tuple[int, int]) -> None:
        refuse_if_too_long(token_count(grid, rules), grid, rules.image_size, most_tokens)

    most = settings.max_tiles or rules.max_tiles
    return crop(upright(image), rules.base_size, rules.image_size, most, rules, check)


def token_count(grid: tuple[int, int], rules: ImageRules) -> int:
    """Number of features of one image: those of each view and one separator, without newlines.

    grid : (columns, rows) of tiles, (1, 1) without tiles.
    """
    tiles = 0 if grid == (1, 1) else grid[0] * grid[1]
    return tiles * rules.queries(rules.image_size)[1] + rules.queries(rules.base_size)[1] + 1


def lay_out(whole: np.ndarray, tiles: list[np.ndarray], separator: np.ndarray) -> np.ndarray:
    """Features in the order of the prompt: tile after tile, global view, separator.

    whole, each of tiles : [n, hidden], in the order of the queries; separator : [hidden].
    Returns [image tokens, hidden].
    """
    return np.concatenate([*tiles, whole, separator[None]])


@lru_cache(maxsize=4)
def view_inputs(side: int, rules: ImageRules) -> Feeds:
    """Inputs of the vision graph beside the pixels, for views of ``side`` pixels (see export.query_vision)."""
    start, count = rules.queries(side)
    return kept(
        {
            **sam_inputs(side // rules.patch_size, rules.grid, rules.window),
            "query_rows": np.arange(start, start + count),
            "attention_bias": attention_bias(count),
        }
    )


def attention_bias(count: int) -> np.ndarray:
    """[2 count, 2 count]: 0 where a row sees a column, for the tokens of the map and then their queries."""
    row, column = np.ogrid[: 2 * count, : 2 * count]
    sees = (column < count) | ((row >= count) & (column <= row))
    return np.where(sees, np.float32(0), np.float32(_HIDDEN))
