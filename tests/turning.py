"""A page of text in Pillow's own face, for tests that turn it."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

TEXT = (
    "the quick brown fox jumps over the lazy dog while people of the village bring their harvest to the market early "
    "and after lunch everybody helps to clean the place so that it looks as before until the next feast day begins"
)


def text_page(size: tuple[int, int] = (700, 900), lines: int = 24) -> Image.Image:
    """An upright page with so many lines."""
    page = Image.new("RGB", size, "white")
    draw, font, words = ImageDraw.Draw(page), ImageFont.load_default(22), TEXT.split()
    for number in range(lines):
        line = " ".join(words[(7 * number + place) % len(words)] for place in range(8))
        draw.text((50, 40 + 34 * number), line, "black", font)
    return page
