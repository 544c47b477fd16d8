"""PaddleOCR-VL's image rules against transformers' own: sizes identical, pixels alike, tiny and narrow ones too."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.model_errors import InvalidInput
from models.paddleocr_vl.images import ImageRules, ImageSettings, for_spotting, resized_size
from models.paddleocr_vl.positions import page_inputs
from models.patches import limited, normalise, resize

LIMITS = {"1.0": (147384, 2822400), "1.5": (112896, 1003520)}


def rules(revision: str = "1.0") -> ImageRules:
    low, high = LIMITS[revision]
    return ImageRules(patch_size=14, merge_size=2, min_pixels=low, max_pixels=high, grid=27, head_dim=72)


def published(width: int, height: int, revision: str) -> tuple[int, int]:
    library = pytest.importorskip("transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl")
    low, high = LIMITS[revision]
    rows, columns = library.smart_resize(height, width, factor=28, min_pixels=low, max_pixels=high)
    return columns, rows


def random_sizes(count: int) -> list[tuple[int, int]]:
    """Sides from 1 to 6000 pixels, as often small as large, with at most 1:200 between them."""
    rng = np.random.default_rng(5)
    sizes: list[tuple[int, int]] = []
    while len(sizes) < count:
        width, height = (round(math.exp(side)) for side in rng.uniform(0, math.log(6000), 2))
        if max(width, height) <= 200 * min(width, height):
            sizes.append((width, height))
    return sizes


@pytest.mark.parametrize("revision", LIMITS)
def test_two_hundred_random_sizes_are_resized_as_published(revision) -> None:
    for width, height in random_sizes(200):
        assert resized_size(width, height, rules(revision)) == published(width, height, revision), (width, height)


@pytest.mark.parametrize("revision", LIMITS)
def test_sides_of_1_to_60_pixels_are_resized_as_published(revision) -> None:
    for width in range(1, 61):
        for height in range(1, 61):
            assert resized_size(width, height, rules(revision)) == published(width, height, revision), (width, height)


def test_halves_are_rounded_to_even_as_published() -> None:
    for side in (14 + 28 * n for n in range(15, 50)):
        assert resized_size(side, side + 28, rules()) == published(side, side + 28, "1.0")


@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000))
def test_every_size_comes_out_in_whole_blocks_within_the_limits(width: int, height: int) -> None:
    try:
        columns, rows = resized_size(width, height, rules())
    except InvalidInput:
        assert max(width, height) > 190 * min(width, height)
        return
    assert columns % 28 == rows % 28 == 0
    assert columns * rows <= 2822400
    assert columns * rows >= 147384


@pytest.mark.parametrize("size", [(28, 5600), (5600, 28), (200, 1), (1, 200)])
def test_a_picture_of_1_to_200_is_taken(size) -> None:
    assert resized_size(*size, rules()) == published(*size, "1.0")


@pytest.mark.parametrize("size", [(28, 5601), (6000, 29), (1, 201), (201, 1), (10_000, 49)])
def test_a_narrower_picture_is_refused_with_its_size_and_the_limit(size) -> None:
    with pytest.raises(ValueError, match="aspect ratio"):
        published(*size, "1.0")
    with pytest.raises(InvalidInput, match=rf"{size[0]} x {size[1]}.*200 times"):
        resized_size(*size, rules())


def test_an_empty_picture_is_refused() -> None:
    with pytest.raises(InvalidInput, match="0 x 5"):
        resize(Image.new("RGB", (0, 5)), rules(), resized_size)


@pytest.mark.parametrize("size", [(1, 1), (3, 27), (300, 200), (901, 377), (1999, 2501), (28, 5600)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_pixels_and_patches_equal_the_published_ones(size, mode) -> None:
    library = pytest.importorskip("transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl")
    pytest.importorskip("torch")
    image = Image.effect_noise(size, 90).convert(mode)
    low, high = LIMITS["1.0"]
    processor = library.PaddleOCRVLImageProcessorPil(
        min_pixels=low, max_pixels=high, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    expected = processor(image, return_tensors="np")
    pixels = normalise(resize(image, rules(), resized_size), rules())
    rows, columns = (side // 14 for side in pixels.shape[2:])
    assert [1, rows, columns] == expected["image_grid_thw"][0].tolist()
    patches = pixels[0].reshape(3, rows, 14, columns, 14).transpose(1, 3, 0, 2, 4).reshape(-1, 3, 14, 14)
    assert np.abs(patches - expected["pixel_values"]).max() < 1e-6


def test_a_turned_photograph_is_set_upright_before_its_size_is_chosen() -> None:
    image = Image.effect_noise((600, 300), 90)
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.info["exif"] = exif.tobytes()
    upright = resize(image, rules(), resized_size)
    assert upright.shape[0] > upright.shape[1]


def test_the_position_table_is_resized_as_torch_does_it() -> None:
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).standard_normal((27, 27, 5)).astype(np.float32)
    for rows, columns in [(2, 400), (27, 27), (28, 40), (126, 88), (54, 2)]:
        inputs = page_inputs(rows, columns, rules())
        ours = np.einsum("hi,wj,ijc->hwc", inputs["position_rows"], inputs["position_columns"], table)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(table).permute(2, 0, 1)[None], size=(rows, columns), mode="bilinear", align_corners=False
        )
        assert np.abs(ours - expected[0].permute(1, 2, 0).numpy()).max() < 1e-5


def test_each_patch_is_turned_by_its_row_and_its_column() -> None:
    inputs = page_inputs(3, 5, rules())
    cos, sin = (inputs[name].reshape(3, 5, 36) for name in ("rotary_cos", "rotary_sin"))
    frequencies = 10_000.0 ** -(np.arange(18) / 18)
    for row in range(3):
        for column in range(5):
            angles = np.concatenate([row * frequencies, column * frequencies])
            assert np.abs(cos[row, column] - np.cos(angles)).max() < 1e-6
            assert np.abs(sin[row, column] - np.sin(angles)).max() < 1e-6


def test_limits_that_are_set_win_and_the_other_gives_way() -> None:
    own = rules("1.5")
    assert limited(own, ImageSettings()) == own
    assert limited(own, ImageSettings(max_pixels=50_000)).min_pixels == 50_000
    assert limited(own, ImageSettings(min_pixels=2_000_000)).max_pixels == 2_000_000
    smaller = limited(own, ImageSettings(max_pixels=200_000))
    assert math.prod(resized_size(1240, 1754, smaller)) <= 200_000 < math.prod(resized_size(1240, 1754, own))
    with pytest.raises(InvalidInput, match="min_pixels is 3000 and max_pixels 2000"):
        limited(own, ImageSettings(min_pixels=3000, max_pixels=2000))


@pytest.mark.parametrize(
    ("size", "doubled"), [((1000, 700), True), ((1499, 1499), True), ((1500, 200), False), ((300, 1600), False)]
)
def test_text_is_spotted_in_a_picture_of_twice_the_size(size: tuple[int, int], doubled: bool) -> None:
    image = Image.effect_noise(size, 50).convert("RGB")
    larger, more = for_spotting(image, rules("1.5"), ImageSettings())
    assert larger.size == ((2 * size[0], 2 * size[1]) if doubled else size)
    assert more.max_pixels == 1_605_632
    assert for_spotting(image, rules("1.0"), ImageSettings())[1].max_pixels == 2_822_400
    assert for_spotting(image, rules("1.5"), ImageSettings(max_pixels=300_000))[1] == rules("1.5")
    if doubled:
        assert np.array_equal(larger, image.resize(larger.size, Image.Resampling.LANCZOS))
