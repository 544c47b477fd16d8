"""Pictures that are transparent in places are laid over white, in every mode and format that can say so."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from models.model_errors import InvalidInput
from models.pixels import Transparency, to_rgb, upright_rgb
from models.settings import InferenceSettings


def drawing(mode: str) -> Image.Image:
    """A dark square on a ground that nobody sees, and that is stored as black."""
    alpha = Image.new("L", (40, 20), 0)
    ImageDraw.Draw(alpha).rectangle((10, 5, 19, 14), fill=255)
    image = Image.new("RGBA", alpha.size, (0, 0, 0, 0))
    image.putalpha(alpha)
    return image.convert(mode) if mode != "La" else image.convert("LA").convert("La")


def with_key(mode: str) -> Image.Image:
    """The same, where one colour stands for "transparent"."""
    image = Image.new(mode, (40, 20), {"RGB": (9, 9, 9), "L": 9, "P": 1, "1": 1, "I;16": 9}[mode])
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    image.paste(0 if mode != "RGB" else (0, 0, 0), (10, 5, 20, 15))
    image.info["transparency"] = {"RGB": (9, 9, 9), "L": 9, "P": 1, "1": 255, "I;16": 9}[mode]
    return image


PICTURES = {
    **{mode: drawing(mode) for mode in ("RGBA", "LA", "RGBa", "La")},
    **{f"{mode} with a colour key": with_key(mode) for mode in ("RGB", "L", "P", "I;16")},
}


def stored(image: Image.Image, form: str) -> Image.Image:
    file = io.BytesIO()
    image.save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    return Image.open(file)


FILES = {
    "PNG": stored(drawing("RGBA"), "PNG"),
    "PNG of greys": stored(drawing("LA"), "PNG"),
    "PNG with a palette": stored(drawing("RGBA").quantize(4), "PNG"),
    "GIF": stored(drawing("RGBA"), "GIF"),
    "WEBP": stored(drawing("RGBA"), "WEBP"),
    "TIFF": stored(drawing("RGBA"), "TIFF"),
}


@pytest.mark.parametrize("picture", [*PICTURES.values(), *FILES.values()], ids=[*PICTURES, *FILES])
def test_dark_strokes_stay_dark_and_the_ground_is_white(picture: Image.Image) -> None:
    seen = np.asarray(upright_rgb(picture))
    assert seen[10, 15].max() <= 12
    assert seen[1, 1].tolist() == [255, 255, 255]
    assert np.array_equal(np.asarray(upright_rgb(picture, "black"))[1, 1], [0, 0, 0])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_the_published_behaviour_drops_the_transparency(mode: str) -> None:
    picture = drawing(mode)
    assert np.array_equal(np.asarray(to_rgb(picture, "drop")), np.asarray(picture.convert("RGB")))


def test_half_a_transparency_is_half_white() -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 127))).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("transparency", ["white", "black", "drop"])
def test_an_opaque_picture_is_as_it_is(transparency: Transparency) -> None:
    noise = Image.effect_noise((30, 20), 90)
    for mode in ("L", "RGB", "P", "CMYK", "1"):
        picture = noise.convert(mode)
        assert np.array_equal(np.asarray(to_rgb(picture, transparency)), np.asarray(picture.convert("RGB")))


def test_another_word_is_refused() -> None:
    with pytest.raises(InvalidInput, match="transparency is 'pink'; it must be white or black or drop"):
        InferenceSettings().override({"transparency": "pink"})
