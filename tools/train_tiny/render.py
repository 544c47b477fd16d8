"""Sets lines of text on a page, with the place of every character, and wears the page like a scan.

Called by `batches` (training), `held_out` (held-out pages) and `layout` (documents). All is a function of the
`random.Random` passed in.
"""

import io
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from . import text
from .fonts import FontFace, load_face

MAX_LINE_CHARACTERS = 90


@dataclass(frozen=True)
class PageStyle:
    """What to draw; lengths in pixels of the page."""

    width: int
    height: int
    font_size: int
    max_lines: int
    kind: str  # key of text.KINDS, or of documents.KINDS
    max_words: int  # of a line
    wear: float = 0.0  # 0 clean, 1 full noise, blur and rotation
    colours: bool = True  # greys and tints; black on white otherwise
    fill: float = 0.0  # the least share of the lines that there is room for


Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in page pixels."""


@dataclass(frozen=True)
class Region:
    """A line, with its own text as label, or a block, with the family's word for it and its Markdown."""

    label: str
    box: Box
    markdown: str = ""


@dataclass
class Page:
    """A rendered page with its truth."""

    image: Image.Image  # RGB
    text: str  # lines joined by a newline; empty for a blank page
    characters: str  # the text without its blanks
    centres: np.ndarray  # of those characters, shape = (n, 2): x and y in page pixels
    lines: tuple[Region, ...] = ()
    blocks: tuple[Region, ...] = ()


class Sheet:
    """A page while it is being drawn: ink as a mask, and where everything stands."""

    def __init__(self, width: int, height: int) -> None:
        self.mask = Image.new("L", (width, height))
        self.draw = ImageDraw.Draw(self.mask)
        self.characters: list[str] = []
        self.centres: list[tuple[float, float]] = []
        self.lines: list[Region] = []
        self.blocks: list[Region] = []

    def write(self, x: float, y: float, words: str, font: ImageFont.FreeTypeFont) -> Box:
        """Draw `words` with the top of the face's ascent at y; return the box of the ink."""
        self.draw.text((x, y), words, fill=255, font=font)
        edges = advances(words, font)
        middle = y + font.getmetrics()[0] - 0.33 * font.size
        for character, start, end in zip(words, edges[:-1], edges[1:], strict=True):
            if character != " ":
                self.characters.append(character)
                self.centres.append((x + (start + end) / 2, middle))
        return self.draw.textbbox((x, y), words, font=font)

    def write_line(self, x: float, y: float, words: str, font: ImageFont.FreeTypeFont) -> Box:
        """Draw a line of its own; return the box of the ink."""
        box = self.write(x, y, words, font)
        self.lines.append(Region(words, box))
        return box

    def finish(self, rng: random.Random, style: PageStyle) -> Page:
        """Return the page: tilted, inked and worn as `style` says."""
        places = np.array(self.centres).reshape(-1, 2)
        boxes = np.array([region.box for region in (*self.lines, *self.blocks)]).reshape(-1, 4)
        corners = boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 2)
        mask, moved = tilt(rng, self.mask, np.concatenate((places, corners)), style.wear)
        places, quads = moved[: len(places)], moved[len(places) :].reshape(-1, 4, 2)
        tight = np.concatenate((quads.min(1), quads.max(1)), axis=1)
        regions = [
            Region(region.label, tuple(box.tolist()), region.markdown)
            for region, box in zip((*self.lines, *self.blocks), tight, strict=True)
        ]
        lines, blocks = tuple(regions[: len(self.lines)]), tuple(regions[len(self.lines) :])
        image = ink(rng, mask, style)
        words = "\n".join(line.label for line in lines)
        return Page(image, words, "".join(self.characters), places, lines, blocks)


def enclosing(boxes: Sequence[Box]) -> Box:
    """Return the box around `boxes`."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def advances(line: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """Return the left edge of every character and the right edge of the last, shape = (len(line) + 1,)."""
    widths = np.array([font.getlength(character) for character in line])
    edges = np.concatenate(([0.0], np.cumsum(widths)))
    edges *= font.getlength(line) / max(edges[-1], 1e-6)  # kerning, spread over the line
    return edges


def set_line(words: Iterator[str], font: ImageFont.FreeTypeFont, width: float, max_words: int) -> str:
    """Return the next words that fit into `width` pixels, up to one that ends its line; empty where not even one
    character fits."""
    line = ""
    for _ in range(max_words):
        marked = next(words)
        word = marked.removesuffix(text.LINE_END)
        candidate = f"{line} {word}" if line else word
        if len(candidate) > MAX_LINE_CHARACTERS or font.getlength(candidate) > width:
            break
        line = candidate
        if word != marked:
            break
    while not line and word:  # a single word that is too long: cut it
        word = word[:-1]
        if word and font.getlength(word) <= width:
            line = word
    return line.strip()


def render_page(rng: random.Random, style: PageStyle, face: FontFace, held_out: bool = False) -> Page:
    """Return one page in `face`; text from the held-out pools where `held_out`."""
    font = load_face(face, style.font_size)
    ascent, descent = font.getmetrics()
    pitch = (ascent + descent) * rng.uniform(0.9, 1.45)
    margin = rng.uniform(0.1, 0.8) * style.font_size
    room = max(1, int((style.height - 2 * margin - (ascent + descent)) / pitch) + 1)
    count = min(style.max_lines, room)
    lines = rng.randint(max(1, math.ceil(count * style.fill)), count)
    words = text.KINDS[style.kind](rng, held_out)
    usable = style.width - 2 * margin
    block = (lines - 1) * pitch + ascent + descent
    top = margin + rng.random() * max(0.0, style.height - 2 * margin - block)
    left = margin if rng.random() < 0.5 else margin + rng.random() * 0.3 * usable
    centred = rng.random() < 0.15
    sheet = Sheet(style.width, style.height)
    for index in range(lines):
        line = set_line(words, font, usable if centred else style.width - margin - left, style.max_words)
        if line:
            x = (style.width - font.getlength(line)) / 2 if centred else left
            sheet.write_line(x, top + index * pitch, line, font)
    if sheet.lines:
        body = "\n".join(line.label for line in sheet.lines)
        sheet.blocks.append(Region("text", enclosing([line.box for line in sheet.lines]), body))
    return sheet.finish(rng, style)


def turned(rng: random.Random, page: Page) -> Page:
    """Return the page upside down or on its side, as which it is not to be read."""
    angles = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    return Page(page.image.transpose(rng.choice(angles)), "", "", np.zeros((0, 2)))


def tilt(rng: random.Random, mask: Image.Image, places: np.ndarray, wear: float) -> tuple[Image.Image, np.ndarray]:
    """Rotate by up to 2 degrees times `wear` about the centre, the character places (shape (n, 2)) with it."""
    if wear == 0 or rng.random() < 0.4:
        return mask, places
    angle = rng.uniform(-2.0, 2.0) * wear
    turned = mask.rotate(angle, Image.Resampling.BICUBIC)
    centre = np.array([mask.width / 2, mask.height / 2])
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return turned, (places - centre) @ np.array([[cosine, -sine], [sine, cosine]]) + centre


def ink(rng: random.Random, mask: Image.Image, style: PageStyle) -> Image.Image:
    """Print the mask in some ink on some paper, then blur, add noise and compress as `style.wear` says."""
    paper, tone = np.array([255.0] * 3), np.array([0.0] * 3)
    if style.colours and rng.random() < 0.4:
        paper = np.array([rng.uniform(190, 255)] * 3) + np.array([rng.uniform(-25, 25) for _ in range(3)])
        tone = np.array([rng.uniform(0, 90)] * 3) + np.array([rng.uniform(-40, 40) for _ in range(3)])
        if rng.random() < 0.12:
            paper, tone = tone, paper
    if style.wear and rng.random() < 0.5:
        mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.035 * style.font_size) * style.wear))
    coverage = np.asarray(mask, dtype=np.float32)[:, :, None] / 255
    pixels = paper + (tone - paper) * coverage
    if style.wear and rng.random() < 0.6:
        noise = np.random.default_rng(rng.getrandbits(32))
        pixels = pixels + noise.normal(0, rng.uniform(2, 16) * style.wear, pixels.shape[:2])[:, :, None]
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if style.wear and rng.random() < 0.3:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(40, 90))
        image = Image.open(buffer).convert("RGB")
    return image


def blank_page(rng: random.Random, style: PageStyle) -> Page:
    """Return paper without text."""
    image = ink(rng, Image.new("L", (style.width, style.height)), style)
    return Page(image, "", "", np.zeros((0, 2)))
