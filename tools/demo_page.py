"""The page that `tools/dev demo` reads, and how others like it are set. Called by the demo and `held_out`."""

from PIL import Image, ImageDraw, ImageFont

PAGE_TEXT = "Invoice 2026-118\nPaper, 500 sheets\n3 boxes at 4.75 EUR\nTotal: 14.25 EUR\nThank you!"
PAGE_SIZE = (384, 192)  # pixels; two of tiny-ocr's tiles
FONT_SIZE = 22


def demo_page(text: str = PAGE_TEXT, font: ImageFont.FreeTypeFont | ImageFont.ImageFont | None = None) -> Image.Image:
    """A small page of black text on white, in Pillow's own face unless another is given."""
    page = Image.new("RGB", PAGE_SIZE, "white")
    face = font or ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(page).text((14, 12), text, fill="black", font=face, spacing=10)
    return page
