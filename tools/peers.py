"""Other readers of printed text, for tables that say who reads what better: tesseract and RapidOCR, where installed.

Called by ``tools.accuracy``. Neither is a requirement: ``apt-get install tesseract-ocr``, ``pip install rapidocr``.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

Read = Callable[[Image.Image], str]

# Tesseract writes typographic quotes and dashes for plain ones; in a table with peers, all rows are compared as plain.
_PLAIN = str.maketrans({**dict.fromkeys("‘’‚‹›", "'"), **dict.fromkeys("“”„«»", '"'), **dict.fromkeys("–—", "-")})


def plain(text: str) -> str:
    """The text with plain quotes and dashes, single blanks and no empty lines."""
    lines = (" ".join(line.split()) for line in text.translate(_PLAIN).replace("''", '"').splitlines())
    return "\n".join(line for line in lines if line)


def installed() -> dict[str, Read]:
    """The peers that this machine has, by name and version."""
    found: dict[str, Read] = {}
    if shutil.which("tesseract"):
        told = subprocess.run(["tesseract", "--version"], check=True, capture_output=True, text=True).stdout
        found[" ".join(told.split()[:2])] = tesseract
    if find_spec("rapidocr"):
        found[f"RapidOCR {version('rapidocr')}"] = rapid()
    return found


def tesseract(image: Image.Image) -> str:
    """English, the page as one block of text, which is what the pages are."""
    file = io.BytesIO()
    image.save(file, "PNG")
    command = ["tesseract", "-", "-", "--psm", "6", "-l", "eng"]
    return subprocess.run(command, check=True, input=file.getvalue(), capture_output=True).stdout.decode()


def rapid() -> Read:
    """RapidOCR with the models that it comes with; it reads one page at a time."""
    from rapidocr import RapidOCR

    engine, alone = RapidOCR(), Lock()

    def read(image: Image.Image) -> str:
        with alone:
            found = engine(np.asarray(image.convert("RGB"))[:, :, ::-1])
        return "\n".join(rows_of(found.boxes, found.txts)) if found.txts else ""

    return read


def rows_of(boxes: Sequence[Any], texts: Sequence[str]) -> Iterator[str]:
    """Lines from pieces: those whose middles lie within half a height of each other, left to right.

    boxes : each of shape (4, 2), corners from the upper left on.
    """
    corners = np.asarray(boxes, dtype=float)
    middles, heights = corners[:, :, 1].mean(1), np.ptp(corners[:, :, 1], axis=1)
    row: list[int] = []
    for index in map(int, np.argsort(middles)):
        if row and middles[index] - middles[row[0]] > heights[row[0]] / 2:
            yield " ".join(texts[piece] for piece in sorted(row, key=lambda piece: corners[piece, 0, 0]))
            row = []
        row.append(index)
    if row:
        yield " ".join(texts[piece] for piece in sorted(row, key=lambda piece: corners[piece, 0, 0]))
