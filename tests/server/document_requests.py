"""Requests with documents of numbered pages, and what a scripted model answers to them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

from PIL import Image

from runtime.requests import Request
from tests.pdfs import scanned_pdf
from tests.server.fake import Step


def file_url(data: bytes, mime: str = "application/pdf") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def file_part(data: bytes) -> dict[str, Any]:
    return {"type": "file", "file": {"file_data": file_url(data), "filename": "paper.pdf"}}


def ask(data: bytes, text: str = "Free OCR.", **more: Any) -> dict[str, Any]:
    content = [file_part(data), {"type": "text", "text": text}]
    return {"model": "deepseek-ocr", "messages": [{"role": "user", "content": content}], **more}


def numbered(count: int) -> bytes:
    """A document whose page n is 100 + n pixels wide, so that a scripted model can tell them apart."""
    return scanned_pdf([Image.new("RGB", (100 + number, 50), "white") for number in range(1, count + 1)])


def number_of(request: Request) -> int:
    return request.images[0].width - 100


def page_text(request: Request) -> Iterable[Step]:
    return [f"Page {number_of(request)}", " ends."]


def events(result: Any) -> list[dict[str, Any]]:
    lines = [line[6:] for line in result.text.split("\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def content(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text
