"""Pages to read, and what a test does with the page of the server in a browser's tab."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from tests.pdfs import text_pdf

WAIT = 60_000  # ms


LINES = ("Invoice 2041", "Paper bags 120", "Boxes of apples 14", "Total due 48.50")


def printed(lines: tuple[str, ...] = LINES) -> Image.Image:
    page = Image.new("RGB", (620, 380), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(26)
    for number, line in enumerate(lines):
        draw.text((40, 50 + number * 70), line, fill="black", font=font)
    return page


def png(page: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return {"name": "page.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def pdf(pages: int) -> dict[str, Any]:
    content = text_pdf([f"page {number + 1}" for number in range(pages)], size=(300, 200))
    return {"name": "three.pdf", "mimeType": "application/pdf", "buffer": content}


def drop(tab: Any, file: dict[str, Any]) -> None:
    """Let a file fall onto the page as a mouse does."""
    carried = tab.evaluate_handle(
        """([name, type, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, { type }));
            return data;
        }""",
        [file["name"], file["mimeType"], list(file["buffer"])],
    )
    tab.dispatch_event("#drop", "dragover", {"dataTransfer": carried})
    tab.dispatch_event("#drop", "drop", {"dataTransfer": carried})


def choose(tab: Any, task: str, *files: dict[str, Any]) -> None:
    tab.select_option("#task", task)
    tab.set_input_files("#files", list(files))


def wait_for_pages(tab: Any, state: str, count: int = 1) -> None:
    marks = "([state, count]) => document.querySelectorAll(`.mark.${state}`).length >= count"
    tab.wait_for_function(marks, arg=[state, count])


def wait_for_text(tab: Any, words: str) -> None:
    tab.wait_for_function("(words) => document.querySelector('#rendered').innerText.trim() === words", arg=words)


def text_of(tab: Any) -> str:
    tab.wait_for_function("() => document.querySelector('#rendered').innerText.trim()")
    words: str = tab.inner_text("#rendered")
    return words.strip()
