"""Pages that stand upright, of many kinds, for training and for measuring: functions of the generator passed in."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tools.train_tiny import text

from . import scripts

SMALL = ((620, 800), (800, 620), (560, 720))  # training's: text of more kinds in the same time
SIZES = ((1240, 1754), (1190, 1684), (850, 1100), (1654, 2339), (1100, 850), (800, 1000), (600, 900))
Box = tuple[int, int, int, int]


class Sheet:
    """A page on which text is set, in one script and one or two of its faces."""

    def __init__(
        self, rng: random.Random, script: str, held_out: bool, sizes: Sequence[tuple[int, int]] = SIZES
    ) -> None:
        """Raises ValueError where there is no font."""
        available = scripts.faces(script, held_out)
        if not available:
            raise ValueError(f"this machine has no font for {script} (held out: {held_out})")
        self.rng, self.script = rng, script
        self.width, self.height = rng.choice(sizes)
        self.paper, self.tone = rng.randint(205, 255), rng.randint(0, 90)
        self.image = Image.new("L", (self.width, self.height), self.paper)
        self.draw = ImageDraw.Draw(self.image)
        self.face, self.other = rng.choice(available), rng.choice(available)
        self.size = max(rng.randint(11, 15), round(max(self.width, self.height) * rng.uniform(0.009, 0.022)))
        self.font = self.face.load(self.size)
        self.words = scripts.words(script, rng, held_out)
        self.margin = self.width // rng.randint(9, 22)

    def line(self, width: float, font: ImageFont.FreeTypeFont | None = None) -> str:
        """As many words as fit."""
        font, gap, line = font or self.font, scripts.gap(self.script), []
        blank = font.getlength(gap) if gap else 0.0
        for word in self.words:
            width -= font.getlength(word) + blank
            if width < 0:
                break
            line.append(word)
        return gap.join(line) or word[:1]

    def column(self, left: int, top: int, right: int, bottom: int) -> None:
        """Paragraphs with headings."""
        rng = self.rng
        pitch = round(self.size * rng.uniform(1.15, 1.9))
        while top < bottom - pitch:
            kind = rng.random()
            if kind < 0.05:
                large = self.other.load(round(self.size * rng.uniform(1.2, 2.2)))
                self.draw.text((left, top), self.line((right - left) * rng.uniform(0.3, 1), large), self.tone, large)
                top += round(large.size * 1.6)
            elif kind < 0.1:
                top += pitch
            else:
                share = rng.uniform(0.2, 0.9) if kind < 0.22 else 1.0
                self.draw.text((left, top), self.line((right - left) * share), self.tone, self.font)
                top += pitch

    def columns(self, count: int) -> None:
        """The page in columns."""
        step = (self.width - 2 * self.margin) // count
        for number in range(count):
            left = self.margin + number * step
            self.column(left, self.margin, left + step - self.size * (count > 1), self.height - self.margin)

    def table(self) -> None:
        """The page as one table, most cells of it numbers."""
        rng, columns = self.rng, self.rng.randint(3, 7)
        step, pitch = (self.width - 2 * self.margin) // columns, round(self.size * rng.uniform(1.4, 2.4))
        ruled, right = rng.random() < 0.6, self.margin + step * columns
        lead = round((pitch - self.size) / 2)
        numeric = [rng.random() < 0.6 for _ in range(columns)]
        for top in range(self.margin, self.height - self.margin - pitch, pitch):
            for number in range(columns):
                cell = text.number(rng) if numeric[number] and top > self.margin else self.line(step * 0.85)
                self.draw.text((self.margin + number * step + lead, top), cell, self.tone, self.font)
            if ruled:
                self.draw.line((self.margin, top - lead, right, top - lead), self.tone, 1)
        if ruled and rng.random() < 0.7:
            for number in range(columns + 1):
                x = self.margin + number * step
                self.draw.line((x, self.margin - lead, x, self.height - self.margin - pitch), self.tone, 1)

    def capitals(self) -> None:
        """A page without lower case, as forms have it."""
        words = self.words
        self.words = (word.upper() for word in words)
        self.columns(self.rng.choice((1, 2)))

    def digits(self) -> None:
        """A page of numbers only."""
        self.words = iter(lambda: text.number(self.rng), "")
        self.columns(self.rng.choice((1, 2, 3)))

    def figures(self) -> None:
        """A page whose upper or lower half is a picture or a chart."""
        middle = self.height // 2 + self.rng.randint(-200, 200)
        left, right = self.margin, self.width - self.margin
        above = self.rng.random() < 0.5
        self.column(left, *((self.margin, right, middle) if above else (middle, right, self.height - self.margin)))
        box = (left, middle, right, self.height - self.margin) if above else (left, self.margin, right, middle - 10)
        self.picture(box)

    def picture(self, box: Box) -> None:
        """Fill a box with a chart or a picture."""
        width, height = box[2] - box[0], box[3] - box[1]
        if self.rng.random() < 0.5:
            self.image.paste(picture(self.rng, width, height), box[:2])
            return
        bars = self.rng.randint(3, 14)
        for number in range(bars):
            x, tall = box[0] + width * number // bars, self.rng.randint(10, height)
            self.draw.rectangle((x, box[3] - tall, x + width // bars * 2 // 3, box[3]), self.rng.randint(60, 200))
        self.draw.line((box[0], box[1], box[0], box[3], box[2], box[3]), self.tone, 2)

    def sparse(self) -> None:
        """A word, or a few."""
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            large = self.face.load(round(self.size * self.rng.uniform(1, 4)))
            place = (self.rng.randint(0, self.width // 2), self.rng.randint(0, self.height - round(large.size)))
            self.draw.text(place, next(self.words)[:14], self.tone, large)

    def vertical(self) -> None:
        """Chinese and Japanese from top to bottom: upright, though its lines are not."""
        pitch, letters = round(self.size * self.rng.uniform(1.4, 2.0)), self.size * 1.05
        for x in range(self.width - self.margin - pitch, self.margin, -pitch):
            column = "".join(word for _, word in zip(range(60), self.words, strict=False))
            y: float = self.margin
            for letter in column:
                if y > self.height - self.margin - letters or self.rng.random() < 0.01:
                    break
                self.draw.text((x, y), letter, self.tone, self.font)
                y += letters

    def worn(self, how: str) -> Image.Image:
        """The page as a scanner or a telephone gives it: ``clean``, ``degraded`` or ``photographed``."""
        if how == "photographed":
            return photographed(self.rng, self.image)
        return degraded(self.rng, self.image, self.paper) if how == "degraded" else self.image


KINDS: dict[str, Callable[[Sheet], None]] = {
    "text": lambda sheet: sheet.columns(1),
    "columns": lambda sheet: sheet.columns(sheet.rng.choice((2, 2, 3))),
    "table": Sheet.table,
    "figures": Sheet.figures,
    "capitals": Sheet.capitals,
    "digits": Sheet.digits,
    "sparse": Sheet.sparse,
    "vertical": Sheet.vertical,
}


def page(
    rng: random.Random, kind: str, script: str, how: str, held_out: bool, sizes: Sequence[tuple[int, int]] = SIZES
) -> Image.Image:
    """One upright page. Raises ValueError where there is no font for the script."""
    sheet = Sheet(rng, script, held_out, sizes)
    KINDS[kind](sheet)
    return sheet.worn(how)


def blank(rng: random.Random) -> Image.Image:
    """Paper, worn."""
    paper = Image.new("L", rng.choice(SIZES), rng.randint(190, 255))
    return degraded(rng, paper, 240)


def degraded(rng: random.Random, image: Image.Image, paper: int) -> Image.Image:
    """Blurred, askew, noisy, speckled, of few grey values or compressed, each or not."""
    if rng.random() < 0.6:
        image = image.rotate(rng.uniform(-2, 2), Image.Resampling.BILINEAR, fillcolor=paper)
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.3)))
    if rng.random() < 0.5:
        image = _noisy(rng, image, rng.uniform(2, 16))
    if rng.random() < 0.25:
        # A fixed limit would wipe fine print away that is out of focus.
        darkest = int(np.percentile(np.asarray(image), 0.5))
        limit = darkest + rng.uniform(0.4, 0.7) * (paper - darkest)
        image = image.point([255 * (value > limit) for value in range(256)])
    if rng.random() < 0.2:
        dots = np.random.default_rng(rng.getrandbits(32)).random((image.height, image.width)) < 0.002
        image = Image.fromarray(np.where(dots, np.uint8(30), np.asarray(image)))
    if rng.random() < 0.5:
        image = _compressed(rng, image)
    return image


def photographed(rng: random.Random, image: Image.Image) -> Image.Image:
    """From a little aside, in uneven light, on a table, out of focus, noisy and compressed."""
    width, height = image.size
    slack = 0.04 * min(width, height)

    def moved(x: float, y: float) -> tuple[float, float]:
        return x + rng.uniform(-slack, slack), y + rng.uniform(-slack, slack)

    corners = [*moved(0, 0), *moved(0, height), *moved(width, height), *moved(width, 0)]
    table = rng.randint(40, 200)
    image = image.transform(image.size, Image.Transform.QUAD, corners, Image.Resampling.BILINEAR, fillcolor=table)
    across = np.linspace(rng.uniform(0.55, 1), rng.uniform(0.55, 1), width)
    down = np.linspace(rng.uniform(0.7, 1), 1, height)
    shade = np.sqrt(across[None] * down[:, None])
    image = Image.fromarray(np.clip(np.asarray(image, np.float32) * shade, 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))
    return _compressed(rng, _noisy(rng, image, rng.uniform(2, 10)))


def _noisy(rng: random.Random, image: Image.Image, strength: float) -> Image.Image:
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal((image.height, image.width), np.float32)
    return Image.fromarray(np.clip(np.asarray(image, np.float32) + strength * noise, 0, 255).astype(np.uint8))


def _compressed(rng: random.Random, image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(30, 90))
    return Image.open(buffer).convert("L")


def picture(rng: random.Random, width: int, height: int) -> Image.Image:
    """A photograph's part, or shapes, waves and textures that look like one."""
    width, height, kind = max(8, width), max(8, height), rng.random()
    if kind < 0.35 and (photographs := _photographs()):
        whole = Image.open(rng.choice(photographs)).convert("L")
        wide, tall = rng.randint(100, whole.width), rng.randint(100, whole.height)
        left, top = rng.randint(0, whole.width - wide), rng.randint(0, whole.height - tall)
        part = whole.crop((left, top, left + wide, top + tall)).resize((width, height))
        return part.rotate(rng.choice((0, 90, 180, 270))).resize((width, height))
    generator = np.random.default_rng(rng.getrandbits(32))
    if kind < 0.6:  # waves: stripes, bricks, cloth
        y, x = np.mgrid[:height, :width].astype(np.float32)
        waves = sum(
            np.sin((x * math.cos(angle) + y * math.sin(angle)) / rng.uniform(2, 40)) * rng.uniform(0.3, 1)
            for angle in (rng.choice((0, math.pi / 2, rng.uniform(0, math.pi))) for _ in range(rng.randint(1, 4)))
        )
        return Image.fromarray(np.clip(128 + 80 * np.asarray(waves), 0, 255).astype(np.uint8))
    if kind < 0.8:  # clouds of some grain
        grain = rng.randint(2, 40)
        small = generator.integers(0, 256, (height // grain + 2, width // rng.randint(2, 40) + 2), np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    image = Image.new("L", (width, height), rng.randint(100, 255))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(20, 300)):
        x, y, size = rng.randrange(width), rng.randrange(height), rng.randint(3, 120)
        box = (x, y, x + size, y + rng.randint(3, 120))
        rng.choice((draw.ellipse, draw.rectangle))(box, rng.randint(0, 255))
        draw.line(
            (x, y, rng.randrange(width), y if rng.random() < 0.5 else rng.randrange(height)),
            rng.randint(0, 255),
            rng.randint(1, 5),
        )
    return image


def _photographs() -> list[Path]:
    """Those that matplotlib brings along."""
    found = find_spec("matplotlib")
    if found is None or found.origin is None:
        return []
    samples = Path(found.origin).parent / "mpl-data/sample_data"
    return [path for name in ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png") if (path := samples / name).exists()]
