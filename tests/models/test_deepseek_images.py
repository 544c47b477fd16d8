"""Image preparation equals an independent transcription of the published code, byte for byte."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from models.deepseek_ocr import images
from models.deepseek_ocr.images import (
    ImageRules,
    ImageSettings,
    choose_grid,
    lay_out,
    make_views,
    normalise,
    token_count,
)
from models.deepseek_ocr.positions import bicubic_rows, linear_rows
from models.model_errors import InvalidInput
from models.pixels import upright_rgb

RULES = ImageRules(patch_size=16, downsample=4, grid=64, clip_grid=16)
# Of each byte: torchvision's ToTensor and Normalize with a mean and a deviation of one half.
PUBLISHED_VALUES = (torch.arange(256, dtype=torch.uint8).float().div(255) - 0.5).div(0.5).numpy()


def published_tensor(pixels: np.ndarray) -> np.ndarray:
    """[height, width, 3] bytes -> [3, height, width], by torch's arithmetic."""
    return PUBLISHED_VALUES[pixels].transpose(2, 0, 1)


def published_preparation(image: Image.Image, base_size: int, image_size: int, crop_mode: bool, max_tiles: int = 9):
    """modeling_deepseekocr.py's ``infer``, written down again from the facts, up to the tensors: PIL calls only."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    grey = (127, 127, 127)
    if not crop_mode:
        if image_size <= 640:
            image = image.resize((image_size, image_size))
        return np.array(ImageOps.pad(image, (image_size, image_size), color=grey)), [], (1, 1)
    ratio = (1, 1)
    tiles = []
    if image.size[0] > image_size or image.size[1] > image_size:
        candidates = []
        for area in range(2, max_tiles + 1):
            candidates += [(i, area // i) for i in range(1, area + 1) if area % i == 0]
        aspect = image.size[0] / image.size[1]
        best = float("inf")
        for i, j in candidates:
            difference = abs(aspect - i / j)
            if difference < best:
                best, ratio = difference, (i, j)
            elif difference == best and image.size[0] * image.size[1] > 0.5 * image_size * image_size * i * j:
                ratio = (i, j)
        big = image.resize((image_size * ratio[0], image_size * ratio[1]))
        for n in range(ratio[0] * ratio[1]):
            x, y = n % ratio[0] * image_size, n // ratio[0] * image_size
            tiles.append(np.array(big.crop((x, y, x + image_size, y + image_size))))
    return np.array(ImageOps.pad(image, (base_size, base_size), color=grey)), tiles, ratio


def test_200_random_sizes_give_identical_tiles_and_arrays() -> None:
    """Their bytes of all; of some also the floats, each of which depends on its byte alone (see the test below).

    The first 40 with the published sizes of tiles and whole view, the others with half of them, which takes a quarter.
    """
    generator = random.Random(7)
    noise = Image.effect_noise((97, 61), 90).convert("RGB")
    grids = set()
    for n in range(200):
        whole_side, tile_side, longest = (1024, 640, 2600) if n < 40 else (512, 320, 1300)
        size = (generator.randint(1, longest), generator.randint(1, longest))
        image = noise.resize(size, Image.Resampling.NEAREST)
        crop = n % 5 != 0
        image_size = tile_side if crop else generator.choice([512, 640, 1024, 1280])
        settings = ImageSettings(base_size=whole_side, image_size=image_size, crop_mode=crop)
        views = make_views(image, settings, RULES)
        whole, tiles, grid = published_preparation(image, whole_side, image_size, crop)
        assert views.grid == grid, size
        assert np.array_equal(views.whole, whole[None]), size
        assert (0 if views.tiles is None else len(views.tiles)) == len(tiles)
        if views.tiles is not None:
            assert np.array_equal(views.tiles, tiles), size
        if n % 10 == 0:
            assert np.array_equal(normalise(views.whole, RULES)[0], published_tensor(whole)), size
        elif n % 10 == 1 and views.tiles is not None:
            assert np.array_equal(normalise(views.tiles, RULES), np.stack(list(map(published_tensor, tiles)))), size
        grids.add(grid)
    assert len(grids) > 10


def test_every_byte_of_every_channel_becomes_the_published_float() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.stack([values, values[::-1], values.T], axis=2)
    assert np.array_equal(normalise(pixels[None], RULES)[0], published_tensor(pixels))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, tmp_path) -> None:
    upright = Image.effect_noise((300, 200), 80).convert("RGB")
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Image.Transpose that stores such a file
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    settings = ImageSettings()
    photo = make_views(Image.open(tmp_path / "photo.png"), settings, RULES)
    assert np.array_equal(photo.whole, make_views(upright, settings, RULES).whole)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_every_pixel_mode_becomes_rgb(mode) -> None:
    base = Image.effect_noise((50, 40), 60)
    image = Image.fromarray(np.asarray(base).astype(np.uint16)) if mode == "I;16" else base.convert("RGB").convert(mode)
    assert make_views(image, ImageSettings(), RULES).whole.shape == (1, 1024, 1024, 3)


@pytest.mark.parametrize(
    ("size", "settings", "expected"),
    [
        ((300, 300), {}, 273),
        ((700, 1000), {}, 21 * 30 + 273),  # 2 wide x 3 high
        ((500, 500), {"crop_mode": False, "image_size": 512}, 73),
        ((500, 500), {"crop_mode": False, "image_size": 640}, 111),
        ((500, 500), {"crop_mode": False, "image_size": 1024}, 273),
        ((500, 500), {"crop_mode": False, "image_size": 1280}, 421),
    ],
)
def test_token_counts_are_the_published_ones(size, settings, expected) -> None:
    views = make_views(Image.new("RGB", size), ImageSettings(**settings), RULES)
    assert token_count(views, RULES) == expected


def test_16_bit_greys_keep_their_tones() -> None:
    tones = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    deep = make_views(Image.fromarray(tones), ImageSettings(), RULES).whole
    eight = make_views(Image.fromarray((tones // 257).astype(np.uint8)), ImageSettings(), RULES).whole
    assert np.array_equal(deep, eight)


def test_max_tiles_is_a_setting() -> None:
    image = Image.new("RGB", (3000, 3000))
    assert make_views(image, ImageSettings(max_tiles=6), RULES).grid == (2, 2)
    assert make_views(image, ImageSettings(), RULES).grid == (3, 3)
    assert make_views(image, ImageSettings(max_tiles=1), RULES).tiles is None


def test_a_grid_never_has_more_tiles_than_allowed() -> None:
    generator = random.Random(3)
    for _ in range(500):
        limit = generator.randint(2, 20)
        columns, rows = choose_grid(generator.randint(1, 5000), generator.randint(1, 5000), 640, limit)
        assert 2 <= columns * rows <= limit


@pytest.mark.parametrize(
    ("setting", "value"), [("base_size", 1000), ("base_size", 1296), ("image_size", 650), ("image_size", 2048)]
)
def test_a_view_size_that_the_model_cannot_take_is_named(setting, value) -> None:
    with pytest.raises(InvalidInput, match=f"{setting} is {value}"):
        make_views(Image.new("RGB", (700, 700)), ImageSettings(**{setting: value}), RULES)


def test_features_are_laid_out_tile_grid_then_global_view_then_separator() -> None:
    whole = np.array([[1.0], [2.0], [3.0], [4.0]])
    tiles = np.array([[[10.0], [11.0], [12.0], [13.0]], [[20.0], [21.0], [22.0], [23.0]]])
    newline, separator = np.array([-1.0]), np.array([-2.0])
    wide = lay_out(whole, tiles, (2, 1), newline, separator)
    assert wide[:, 0].tolist() == [10, 11, 20, 21, -1, 12, 13, 22, 23, -1, 1, 2, -1, 3, 4, -1, -2]
    high = lay_out(whole, tiles, (1, 2), newline, separator)
    assert high[:, 0].tolist() == [10, 11, -1, 12, 13, -1, 20, 21, -1, 22, 23, -1, 1, 2, -1, 3, 4, -1, -2]
    assert lay_out(whole, None, (1, 1), newline, separator)[:, 0].tolist() == [1, 2, -1, 3, 4, -1, -2]


@pytest.mark.parametrize(
    ("source", "target"), [(16, 8), (16, 10), (16, 16), (16, 20), (64, 32), (64, 40), (64, 80), (8, 5)]
)
def test_bicubic_matrix_equals_torch_interpolation(source, target) -> None:
    """In float64: in float32 torch's own weights are off by 1e-5, since it computes positions in that type."""
    table = torch.randn(1, 5, source, source, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(
        table.double(), size=(target, target), mode="bicubic", antialias=True, align_corners=False
    )
    rows = bicubic_rows(source, target)
    assert np.abs(rows @ table.numpy() @ rows.T - expected.numpy()).max() < 2e-6
    if source == target:
        assert np.array_equal(rows, np.eye(source))


@pytest.mark.parametrize(("source", "target"), [(127, 63), (127, 79), (127, 127), (127, 159), (27, 31)])
def test_linear_matrix_equals_torch_interpolation(source, target) -> None:
    table = torch.randn(1, 5, source, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(table.double(), size=target, mode="linear").numpy()
    assert np.abs(table.numpy() @ linear_rows(source, target).T - expected).max() < 2e-6


def test_more_tiles_than_the_model_takes_are_refused_before_they_are_made(monkeypatch) -> None:
    monkeypatch.setattr(images, "padded", lambda image, side, rules: Image.new("RGB", (side, side)))
    monkeypatch.setattr(Image.Image, "resize", lambda *args, **kwargs: pytest.fail("resized before the check"))
    settings = ImageSettings(image_size=1280, max_tiles=64)
    with pytest.raises(InvalidInput, match=r"8 x 7 tiles of 1280 pixels make 22\d+ tokens; the model takes 8192"):
        make_views(Image.new("RGB", (1600, 1400)), settings, RULES, 8192)
    monkeypatch.undo()
    page = Image.new("RGB", (1240, 1754))
    assert make_views(page, ImageSettings(), RULES, 904).grid == (2, 3)
    with pytest.raises(InvalidInput, match="903 tokens"):
        make_views(page, ImageSettings(), RULES, 903)


def test_an_orientation_is_followed_once(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((30, 20), 80).convert("RGB").save(tmp_path / "photo.jpg", exif=exif)
    upright = upright_rgb(Image.open(tmp_path / "photo.jpg"))
    assert upright.size == (20, 30)
    assert np.array_equal(np.asarray(upright_rgb(upright)), np.asarray(upright))


@pytest.mark.parametrize(
    ("size", "grid", "tokens"),
    [
        ((1654, 2339), (2, 3), 903), ((2480, 3508), (4, 6), 2733), ((2550, 3300), (3, 4), 1513),
        ((800, 600), (4, 3), 1503), ((600, 2000), (3, 10), 3373),
    ],
)  # fmt: skip
def test_unlimited_ocr_takes_up_to_32_tiles(size, grid, tokens) -> None:
    """The examples of its facts, which were worked out with the published rule."""
    views = make_views(Image.new("RGB", size), ImageSettings(), RULES.model_copy(update={"max_tiles": 32}))
    assert views.grid == grid
    assert token_count(views, RULES) == tokens
