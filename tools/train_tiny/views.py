"""From a page to the model's input: global view, tiles, image tokens, and which characters each vision token sees.

The rules are the published ones with this model's sizes (shared/facts/deepseek-ocr.md, "Image preparation"); written
here a second time, so that the product's code is tested against a model that was trained without it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from .render import Page
from .text import TYPOGRAPHIC

GREY = (127, 127, 127)
PROBE_COLUMNS, PROBE_ROWS = 8, 2
SLOTS = PROBE_COLUMNS * PROBE_ROWS
"""The reading probe asks of every vision token which character, if any, has its centre in each of these parts of it."""
CHARACTERS = "".join(map(chr, range(33, 127))) + TYPOGRAPHIC
PROBE_CLASSES = 1 + len(CHARACTERS)
"""Class 0 says "none", the others are CHARACTERS."""
CLASS_OF = {character: number for number, character in enumerate(CHARACTERS, 1)}
IGNORE = -100


@dataclass
class Views:
    """One page as the model takes it."""

    global_view: np.ndarray  # shape = (3, side, side), bytes
    tiles: np.ndarray  # shape = (columns * rows, 3, tile side, tile side), bytes, row by row; may be empty
    grid: tuple[int, int]  # columns, rows; (1, 1) without tiles
    probe: np.ndarray  # shape = (image tokens, SLOTS): classes of the characters under each token, or IGNORE


def choose_grid(width: int, height: int, image_size: int, max_tiles: int) -> tuple[int, int]:
    """Return (columns, rows) of the tiles: the closest aspect ratio; on a tie the larger one if the image can fill it.

    (1, 1) means no tiles: the image is not larger than one.
    """
    if width <= image_size and height <= image_size:
        return 1, 1
    grids = sorted(
        ((i, j) for i in range(1, max_tiles + 1) for j in range(1, max_tiles + 1) if 2 <= i * j <= max_tiles),
        key=lambda grid: grid[0] * grid[1],
    )
    best, best_difference = (1, 1), float("inf")
    for i, j in grids:
        difference = abs(width / height - i / j)
        if difference < best_difference:
            best, best_difference = (i, j), difference
        elif difference == best_difference and width * height > 0.5 * image_size * image_size * i * j:
            best = (i, j)
    return best


def planes(image: Image.Image) -> np.ndarray:
    """Return the pixels, shape = (3, height, width), bytes: a quarter of what batches would weigh as floats."""
    return np.array(image).transpose(2, 0, 1)


def normalise(pixels: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return bytes as the model takes them: scaled to -1 .. 1, on `device`, in `dtype`."""
    return ((pixels.to(device).float() / 255 - 0.5) / 0.5).to(dtype)


def probe_targets(characters: str, places: np.ndarray, columns: int, rows: int, token_pixels: int) -> np.ndarray:
    """Return which character has its centre in which part of each vision token, with the newline column to ignore.

    places : shape = (n, 2), pixels of this grid's picture. Returns shape = (rows, columns + 1, SLOTS). A part with two
    centres is ignored: the type is too small for it.
    """
    parts = np.zeros((rows * PROBE_ROWS, columns * PROBE_COLUMNS), dtype=np.int64)
    step = np.array([token_pixels / PROBE_COLUMNS, token_pixels / PROBE_ROWS])
    for character, (x, y) in zip(characters, (places // step).astype(int), strict=True):
        if 0 <= y < parts.shape[0] and 0 <= x < parts.shape[1]:
            parts[y, x] = IGNORE if parts[y, x] else CLASS_OF[character]
    targets = np.full((rows, columns + 1, SLOTS), IGNORE, dtype=np.int64)
    grid = parts.reshape(rows, PROBE_ROWS, columns, PROBE_COLUMNS).transpose(0, 2, 1, 3)
    targets[:, :columns] = grid.reshape(rows, columns, SLOTS)
    return targets


def make_views(
    page: Page, base_size: int, image_size: int, max_tiles: int, token_pixels: int, crop: bool = True
) -> Views:
    """Cut the page as crop mode does; with `crop` false, only a global view of side `base_size`.

    Without crop a side of `image_size` or less is stretched instead of padded, as the published code does at its 640.
    """
    image, places = page.image, page.centres
    width, height = image.size
    side = base_size // token_pixels
    if not crop and base_size <= image_size:
        view = image.resize((base_size, base_size))
        seen = places * np.array([base_size / width, base_size / height])
    else:
        view = ImageOps.pad(image, (base_size, base_size), color=GREY)
        scale = base_size / max(width, height)
        seen = places * scale + (base_size - np.array([width, height]) * scale) / 2
    view_probe = probe_targets(page.characters, seen, side, side, token_pixels).reshape(-1, SLOTS)
    separator = np.full((1, SLOTS), IGNORE, dtype=np.int64)
    grid = choose_grid(width, height, image_size, max_tiles) if crop else (1, 1)
    if grid == (1, 1):
        tiles = np.zeros((0, 3, image_size, image_size), dtype=np.uint8)
        return Views(planes(view), tiles, grid, np.concatenate((view_probe, separator)))
    columns, rows = grid
    sheet = planes(image.resize((image_size * columns, image_size * rows)))
    tiles = sheet.reshape(3, rows, image_size, columns, image_size).transpose(1, 3, 0, 2, 4)
    tiles = tiles.reshape(rows * columns, 3, image_size, image_size)
    side = image_size // token_pixels
    seen = places * np.array([image_size * columns / width, image_size * rows / height])
    tile_probe = probe_targets(page.characters, seen, side * columns, side * rows, token_pixels).reshape(-1, SLOTS)
    return Views(planes(view), tiles, grid, np.concatenate((tile_probe, view_probe, separator)))
