"""Sets the blocks of a document on a page: headings, paragraphs, lists, tables, amounts at the edge, figures.

Lines are recorded as people read them: a row of a table is a line, its cells joined by a blank. Called by `batches` and
`held_out`.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import ImageFont

from .documents import KINDS, Block, Bullets, Figure, Heading, Line, Paragraph, Source, Table
from .fonts import FontFace, load_face
from .render import Box, Page, PageStyle, Region, Sheet, enclosing

TALLEST = 4000  # pixels of a sheet before it is cut to what stands on it
LARGER = (1.6, 1.25)  # the type of titles and of sections' headings


@dataclass(frozen=True)
class Faces:
    """The regular and the bold face of a document."""

    regular: FontFace
    bold: FontFace


def faces_for(rng: random.Random, family: list[FontFace]) -> Faces:
    """Return upright faces of a family, or italic ones now and then; without a bold face the regular one serves."""
    italic = rng.random() < 0.1 and any(face.italic for face in family)
    alike = [face for face in family if face.italic == italic]
    regular = next(face for face in alike if not face.bold)
    return Faces(regular, next((face for face in alike if face.bold), regular))


def render_document(rng: random.Random, style: PageStyle, faces: Faces, held_out: bool = False) -> Page:
    """Return a document of about `style.max_lines` lines, as wide as `style` says and as high as its lines need."""
    source = Source(rng, held_out, faces.regular.ascii_only)
    blocks = KINDS[style.kind](source, style.max_lines)
    typesetter = Typesetter(rng, style, faces)
    for block in blocks:
        typesetter.set(block)
    return typesetter.page()


class Typesetter:
    """Puts one block below the other."""

    def __init__(self, rng: random.Random, style: PageStyle, faces: Faces) -> None:
        self.rng, self.style, self.faces = rng, style, faces
        self.font = load_face(faces.regular, style.font_size)
        self.bold = load_face(faces.bold, style.font_size)
        self.margin = rng.uniform(0.3, 1.2) * style.font_size
        self.pitch = sum(self.font.getmetrics()) * rng.uniform(0.95, 1.3)
        self.gap = self.pitch * rng.uniform(0.0, 0.6)
        self.bullet = "-" if faces.regular.ascii_only else rng.choice("•-·–")
        self.heavy = rng.random() < 0.7  # headings in bold
        self.top = self.margin
        self.sheet = Sheet(style.width, TALLEST)

    @property
    def right(self) -> float:
        """The right edge of the text."""
        return self.style.width - self.margin

    def page(self) -> Page:
        """Return what has been set, cut below its last line."""
        height = min(TALLEST, round(self.top + self.margin))
        self.sheet.mask = self.sheet.mask.crop((0, 0, self.style.width, height))
        return self.sheet.finish(self.rng, self.style)

    def set(self, block: Block) -> None:
        """Set one block."""
        match block:
            case Heading():
                self.heading(block)
            case Paragraph():
                self.paragraph(block)
            case Bullets():
                self.bullets(block)
            case Line():
                self.line(block)
            case Table():
                self.table(block)
            case Figure():
                self.figure(block)
        self.top += self.gap

    def close(self, label: str, boxes: list[Box], markdown: str) -> None:
        """Record a block, if anything of it was set."""
        if boxes:
            self.sheet.blocks.append(Region(label, enclosing(boxes), markdown))

    def fits(self, words: str, font: ImageFont.FreeTypeFont, width: float) -> str:
        """Return as many whole words as fit into `width`, of a single long one its first letters."""
        while words and font.getlength(words) > width:
            words = words.rpartition(" ")[0] or words[:-1]
        return words.strip()

    def heading(self, block: Heading) -> None:
        """Set a heading in larger type, bold or not."""
        size = round(self.style.font_size * LARGER[block.level - 1])
        font = load_face(self.faces.bold if self.heavy else self.faces.regular, size)
        words = self.fits(block.words, font, self.right - self.margin)
        if words:
            box = self.sheet.write_line(self.margin, self.top, words, font)
            label = ("title", "sub_title")[block.level - 1]
            self.close(label, [box], f"{'#' * block.level} {words}")
            self.top += sum(font.getmetrics()) * 1.05

    def paragraph(self, block: Paragraph) -> None:
        """Set words line after line, the bold ones in the bold face and between ** in Markdown."""
        boxes, markdown = [], []
        for line in self.broken(block):
            x, pieces = self.margin, []
            for bold, words in runs(line):
                font = self.bold if bold else self.font
                pieces.append(self.sheet.write(x, self.top, words, font))
                x += font.getlength(words + " ")
                marked = bold and self.faces.bold != self.faces.regular
                markdown.append(f"**{words}**" if marked else words)
            boxes.append(enclosing(pieces))
            self.sheet.lines.append(Region(" ".join(word for word, _ in line), boxes[-1]))
            self.top += self.pitch
        self.close("text", boxes, " ".join(markdown).replace("** **", " "))

    def broken(self, block: Paragraph) -> Iterator[list[tuple[str, bool]]]:
        """Yield the words of each line."""
        line: list[tuple[str, bool]] = []
        used = 0.0
        for word, bold in block.words:
            font = self.bold if bold else self.font
            if self.margin + font.getlength(word) > self.right:
                continue
            needed = font.getlength(f"{word} ")
            if line and self.margin + used + font.getlength(word) > self.right:
                yield line
                line, used = [], 0.0
            line.append((word, bold))
            used += needed
        if line:
            yield line

    def bullets(self, block: Bullets) -> None:
        """Set a list, marked or numbered."""
        boxes, markdown = [], []
        for number, item in enumerate(block.items, 1):
            mark = f"{number}." if block.numbered else self.bullet
            words = self.fits(f"{mark} {item}", self.font, self.right - 1.5 * self.margin)
            if words != mark:
                boxes.append(self.sheet.write_line(1.5 * self.margin, self.top, words, self.font))
                markdown.append(f"{mark if block.numbered else '-'} {words.removeprefix(mark).strip()}")
                self.top += self.pitch
        self.close("text", boxes, "\n".join(markdown))

    def line(self, block: Line) -> None:
        """Set a line, its amount at the right edge."""
        room = self.right - self.margin - self.font.getlength(f"  {block.amount}")
        words = self.fits(block.words, self.font, room)
        if not words:
            return
        x = (self.style.width - self.font.getlength(words)) / 2 if block.centred else self.margin
        boxes = [self.sheet.write(x, self.top, words, self.font)]
        if block.amount:
            x = self.right - self.font.getlength(block.amount)
            boxes.append(self.sheet.write(x, self.top, block.amount, self.font))
            words += f" {block.amount}"
        self.sheet.lines.append(Region(words, enclosing(boxes)))
        self.close("text", boxes, words)
        self.top += self.pitch

    def table(self, block: Table) -> None:
        """Set a table: columns as wide as their cells where there is room, numbers to the right, rules or none."""
        pad, room = 0.4 * self.style.font_size, self.right - self.margin
        columns = list(zip(*block.rows, strict=True))
        wanted = [max(self.bold.getlength(cell) for cell in column) + 2 * pad + 1 for column in columns]
        while sum(wanted) > room and len(wanted) > 1:  # columns that have no room are left out
            wanted.pop()
        columns = columns[: len(wanted)]
        spread = room / sum(wanted) if sum(wanted) > room or self.rng.random() < 0.5 else 1.0
        edges = [self.margin]
        for width in wanted:
            edges.append(edges[-1] + width * spread)
        numeric = [all(not cell or cell[-1].isdigit() for cell in column[1:]) for column in columns]
        tall = self.pitch * (1.25 if block.ruled else 1.0)
        top, html, boxes = self.top, [], []
        for number, row in enumerate(zip(*columns, strict=True)):
            font = self.bold if number == 0 else self.font
            cells = [self.fits(c, font, b - a - 2 * pad) for c, a, b in zip(row, edges[:-1], edges[1:], strict=True)]
            pieces = []
            for cell, left, right, to_right in zip(cells, edges[:-1], edges[1:], numeric, strict=True):
                if cell:
                    x = right - pad - font.getlength(cell) if to_right else left + pad
                    pieces.append(self.sheet.write(x, self.top + (tall - self.pitch) / 2, cell, font))
            if pieces:
                boxes.append(enclosing(pieces))
                self.sheet.lines.append(Region(" ".join(cell for cell in cells if cell), boxes[-1]))
            html.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
            self.top += tall
        if block.ruled:
            thick = max(1, self.style.font_size // 16)
            for number in range(len(block.rows) + 1):
                self.sheet.draw.line((edges[0], top + number * tall, edges[-1], top + number * tall), 255, thick)
            for x in edges if self.rng.random() < 0.6 else ():
                self.sheet.draw.line((x, top, x, self.top), 255, thick)
            boxes.append((edges[0], top, edges[-1], self.top))
        self.close("table", boxes, f"<table>{''.join(html)}</table>")

    def figure(self, block: Figure) -> None:
        """Draw bars, a curve or a disc in a frame."""
        width = (self.right - self.margin) * self.rng.uniform(0.3, 0.9)
        left, height = self.margin, block.height * width
        box = (left, self.top, left + width, self.top + height)
        self.sheet.draw.rectangle(box, outline=255, width=max(1, self.style.font_size // 12))
        kind, steps = self.rng.randrange(3), self.rng.randint(4, 9)
        heights = [self.top + height * self.rng.uniform(0.1, 0.9) for _ in range(steps)]
        across = [left + width * (step + 0.5) / steps for step in range(steps)]
        if kind == 0:
            for x, y in zip(across, heights, strict=True):
                self.sheet.draw.rectangle((x - width / steps / 3, y, x + width / steps / 3, box[3]), fill=200)
        elif kind == 1:
            self.sheet.draw.line(list(zip(across, heights, strict=True)), 255, max(1, self.style.font_size // 8))
        else:
            radius = 0.4 * min(width, height)
            x, y = left + width / 2, self.top + height / 2
            self.sheet.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=self.rng.randint(90, 255))
        self.close("image", [box], "")
        self.top += height


def runs(line: list[tuple[str, bool]]) -> Iterator[tuple[bool, str]]:
    """Yield the words of a line joined as far as they are equally bold."""
    start = 0
    for end in range(1, len(line) + 1):
        if end == len(line) or line[end][1] != line[start][1]:
            yield line[start][1], " ".join(word for word, _ in line[start:end])
            start = end
