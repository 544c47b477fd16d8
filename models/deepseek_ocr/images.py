"""DeepSeek-OCR's image preparation: tiles, global view, normalisation.

A transcription of the published code (deepseek-ai/DeepSeek-OCR, modeling_deepseekocr.py). The model is sensitive to the
resampling, so Pillow does it, with the same calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from models.family_settings import FamilySettings
from models.model_errors import ContextExceeded, InvalidInput
from models.pixels import upright_rgb

# Without crop mode, views up to this side are stretched to a square, larger ones padded (published code).
STRETCH_LIMIT = 640


class ImageSettings(FamilySettings):
    """Settings of images."""

    base_size: int | None = Field(
        None, ge=32, le=4096, description="side of the padded global view in pixels", examples=[1024]
    )
    image_size: int | None = Field(
        None, ge=32, le=4096, description="side of a tile, or of the only view without crop mode, in pixels",
        examples=[640],
    )  # fmt: skip
    crop_mode: bool = Field(True, description="cut large images into tiles beside the global view")
    max_tiles: int | None = Field(None, ge=1, le=64, description="most tiles of one image", examples=[9])


class ViewRules(BaseModel):
    """Settings of views that every generation has, as kept in the manifest."""

    model_config = ConfigDict(frozen=True)

    patch_size: int  # pixels
    downsample: int  # patches a side that one vision token covers
    grid: int  # side of SAM's position table, patches
    window: int = 14  # side of an attention window of SAM, patches; older exports, not made for CUDA, lack it
    base_size: int  # side of the global view, pixels
    image_size: int  # side of a tile
    max_tiles: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def tokens_per_side(self, side: int) -> int:
        """Vision tokens along one side of a view of so many pixels."""
        return -(-(side // self.patch_size) // self.downsample)


class ImageRules(ViewRules):
    """The model's own image settings, from its checkpoint."""

    clip_grid: int  # side of CLIP's position table
    base_size: int = 1024  # by default, as image_size is
    image_size: int = 640
    max_tiles: int = 9  # 9 in the published Hugging Face code, 6 in the authors' vLLM code

    @property
    def largest_side(self) -> int:
        """Largest view the model was made for: 1280 at published sizes (the "Large" mode), else in proportion."""
        return self.grid * self.patch_size * 5 // 4


@dataclass(frozen=True)
class Views:
    """One image, cut for the vision tower.

    whole : [1, base, base, 3] uint8, the global view.
    tiles : [columns * rows, size, size, 3] uint8, row by row; None when the image was not cut.
    grid : (columns, rows) of the tiles, (1, 1) without.

    Bytes, not floats: a request that waits in the queue holds a quarter of the memory.
    """

    whole: np.ndarray
    tiles: np.ndarray | None
    grid: tuple[int, int]


def make_views(image: Image.Image, settings: ImageSettings, rules: ImageRules, most_tokens: int | None = None) -> Views:
    """Orient the image by its EXIF data, convert it to RGB, and cut and scale it as the settings say.

    most_tokens : the model's context: prompt and answer together.

    Raises
    ------
    InvalidInput
        for an empty image, a view size that the model cannot take, or too many tiles; raised before tiles are made.
    """
    size = _checked_side("image_size", settings.image_size or rules.image_size, rules)
    image = upright(image)
    if not settings.crop_mode:
        if size <= STRETCH_LIMIT:
            image = image.resize((size, size))
        return Views(_stack([padded(image, size, rules)]), None, (1, 1))
    base = _checked_side("base_size", settings.base_size or rules.base_size, rules)

    def check(grid: tuple[int, int]) -> None:
        refuse_if_too_long(_tokens(base, size, grid, rules), grid, size, most_tokens)

    return crop(image, base, size, settings.max_tiles or rules.max_tiles, rules, check)


def seen_pixels(settings: ImageSettings, rules: ImageRules) -> int:
    """Most pixels that go into views; see ``models.family.Family``."""
    size = settings.image_size or rules.image_size
    if not settings.crop_mode:
        return size**2
    return max((settings.base_size or rules.base_size) ** 2, (settings.max_tiles or rules.max_tiles) * size**2)


def global_view(image: Image.Image, settings: ImageSettings, rules: ImageRules) -> Views:
    """The padded view alone, whatever the image's size: the "base" mode.

    Raises
    ------
    InvalidInput
        for an empty image, or a view size that the model cannot take.
    """
    base = _checked_side("base_size", settings.base_size or rules.base_size, rules)
    return Views(_stack([padded(upright(image), base, rules)]), None, (1, 1))


def crop(
    image: Image.Image, base: int, size: int, max_tiles: int, rules: ViewRules, check: Callable[[tuple[int, int]], None]
) -> Views:
    """Crop mode: the global view and, of an image that is larger than a tile, tiles.

    image : upright. check : called with the grid before its tiles are made.
    """
    whole = _stack([padded(image, base, rules)])
    if image.width <= size and image.height <= size:
        return Views(whole, None, (1, 1))
    columns, rows = choose_grid(image.width, image.height, size, max_tiles)
    if columns * rows == 1:
        return Views(whole, None, (1, 1))
    check((columns, rows))
    stretched = image.resize((columns * size, rows * size))
    tiles = [
        stretched.crop((column * size, row * size, (column + 1) * size, (row + 1) * size))
        for row in range(rows)
        for column in range(columns)
    ]
    return Views(whole, _stack(tiles), (columns, rows))


def refuse_if_too_long(tokens: int, grid: tuple[int, int], size: int, most_tokens: int | None) -> None:
    """Raises ContextExceeded for tiles that leave no room for an answer. most_tokens : None: no limit."""
    if most_tokens is not None and tokens >= most_tokens:
        columns, rows = grid
        raise ContextExceeded(
            f"{columns} x {rows} tiles of {size} pixels make {tokens} tokens; the model takes {most_tokens} with its "
            "answer: lower max_tiles or image_size"
        )


def choose_grid(width: int, height: int, size: int, max_tiles: int) -> tuple[int, int]:
    """(columns, rows) of the tiling whose aspect ratio is closest to the image's; (1, 1) when only one tile is allowed.

    All grids of 2 to ``max_tiles`` tiles compete in order of their area; a later one wins a tie when the image has more
    than half its pixels.
    """
    grids = {
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles + 1)
        if 2 <= columns * rows <= max_tiles
    }
    best, best_difference = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)):
        difference = abs(width / height - columns / rows)
        enough_pixels = width * height > 0.5 * size * size * columns * rows
        if difference < best_difference or (difference == best_difference and enough_pixels):
            best, best_difference = (columns, rows), difference
    return best


def token_count(views: Views, rules: ImageRules) -> int:
    """Features of one image."""
    size = 0 if views.tiles is None else views.tiles.shape[1]
    return _tokens(views.whole.shape[1], size, views.grid, rules)


def _tokens(base: int, size: int, grid: tuple[int, int], rules: ImageRules) -> int:
    """A newline ends each row of tile features and of global features, a separator ends all. Grid (1, 1): no tiles."""
    q = rules.tokens_per_side(base)
    total = (q + 1) * q + 1
    if grid != (1, 1):
        columns, rows = grid
        q = rules.tokens_per_side(size)
        total += (q * columns + 1) * (q * rows)
    return total


def lay_out(
    whole: np.ndarray, tiles: np.ndarray | None, grid: tuple[int, int], newline: np.ndarray, separator: np.ndarray
) -> np.ndarray:
    """Features in the order of the prompt: tiles as one grid, global view, separator.

    whole : [q * q, hidden]; tiles : [columns * rows, q' * q', hidden] or None; newline, separator : [hidden].
    Returns [image tokens, hidden].
    """
    parts = [_with_newlines(_square(whole), newline), separator[None]]
    if tiles is not None:
        columns, rows = grid
        q, hidden = round(tiles.shape[1] ** 0.5), tiles.shape[2]
        stitched = tiles.reshape(rows, columns, q, q, hidden).transpose(0, 2, 1, 3, 4)
        parts.insert(0, _with_newlines(stitched.reshape(rows * q, columns * q, hidden), newline))
    return np.concatenate(parts)


def _square(features: np.ndarray) -> np.ndarray:
    q = round(len(features) ** 0.5)
    return features.reshape(q, q, -1)


def _with_newlines(grid: np.ndarray, newline: np.ndarray) -> np.ndarray:
    """[rows, columns, hidden] -> [rows * (columns + 1), hidden]"""
    rows, _, hidden = grid.shape
    column = np.broadcast_to(newline, (rows, 1, hidden))
    return np.concatenate([grid, column], axis=1).reshape(-1, hidden)


def upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF data, in RGB. Raises InvalidInput for an empty image."""
    if 0 in image.size:
        raise InvalidInput(f"the image has size {image.size[0]} x {image.size[1]}; it needs at least one pixel")
    return upright_rgb(image)


def padded(image: Image.Image, side: int, rules: ViewRules) -> Image.Image:
    red, green, blue = (int(value * 255) for value in rules.mean)
    return ImageOps.pad(image, (side, side), color=(red, green, blue))


def normalise(views: np.ndarray, rules: ViewRules) -> np.ndarray:
    """[n, side, side, 3] uint8 -> [n, 3, side, side] float32, as torchvision's ToTensor and Normalize do."""
    pixels = views.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    pixels /= np.float32(255)
    pixels -= np.array(rules.mean, np.float32).reshape(3, 1, 1)
    pixels /= np.array(rules.std, np.float32).reshape(3, 1, 1)
    return pixels


def _stack(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def _checked_side(name: str, side: int, rules: ImageRules) -> int:
    if side % rules.patch_size or not rules.patch_size <= side <= rules.largest_side:
        raise InvalidInput(
            f"{name} is {side}; this model takes multiples of {rules.patch_size} up to {rules.largest_side} pixels"
        )
    return side
