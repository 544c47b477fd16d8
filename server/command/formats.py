"""What a document's results look like: Markdown, JSON, plain text. Written page by page, in order, to any text file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, Self, TextIO
from urllib.parse import quote

from models.grounding import FIGURE_LABEL, Box, to_markdown
from runtime.confidence import Confidence

FORMATS = ("md", "json", "txt")

# Ends of a page's text that lost some of it -> what to do about it.
CUT_OFF = {
    "max_tokens": "raise --max-new-tokens",
    "context": "the model's own limit: use smaller pages, or --max-tiles with a lower number",
    "loop": "the model repeated itself: try a lower --no-repeat-ngram-size, or another --dpi",
    "deadline": "raise --deadline",
}


@dataclass(frozen=True)
class PageResult:
    """All that is kept of one page."""

    page: int  # from 1
    state: Literal["done", "failed"]
    error: str | None = None
    transient: bool = False  # it failed for a reason that may pass: --resume reads it again
    width: int = 0  # pixels of the page as it was read
    height: int = 0
    text: str = ""  # with the places of the answer still in it
    boxes: tuple[Box, ...] = ()
    figures: tuple[str, ...] = ()  # where the picture of each figure is, from the document's own folder
    finish_detail: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    timings: Mapping[str, float] = field(default_factory=dict)
    confidence: Confidence | None = None  # None: the server or the earlier run did not say
    doubtful: bool = False  # its mean is below --min-confidence

    def markdown(self) -> str:
        """The text with figures as links, or without them where there are no pictures."""
        links = [_link(path) for path in self.figures]
        return to_markdown(self.text, links.__getitem__ if links else None)

    def to_json(self) -> dict[str, Any]:
        """As JSON's types."""
        if self.state == "failed":
            failure = {"page": self.page, "state": self.state, "error": self.error, "seconds": round(self.seconds, 3)}
            return {**failure, "transient": True} if self.transient else failure
        figures = iter(self.figures)
        boxes: list[dict[str, Any]] = []
        for box in self.boxes:
            entry: dict[str, Any] = {"label": box.label, "text": box.text, "box": list(box.box)}
            if box.label == FIGURE_LABEL and (picture := next(figures, None)) is not None:
                entry["image"] = picture
            boxes.append(entry)
        return {
            "page": self.page,
            "state": self.state,
            "width": self.width,
            "height": self.height,
            "markdown": self.markdown(),
            "text": self.text,
            "boxes": boxes,
            "finish_detail": self.finish_detail,
            "usage": {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens},
            "seconds": round(self.seconds, 3),
            "timings": dict(self.timings),
            **({"confidence": asdict(self.confidence)} if self.confidence else {}),
            **({"doubtful": True} if self.doubtful else {}),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` made.

        Raises
        ------
        KeyError, TypeError, ValueError
            for anything else.
        """
        if entry["state"] == "failed":
            return cls(
                int(entry["page"]), "failed", str(entry["error"]), bool(entry.get("transient")),
                seconds=float(entry["seconds"]),
            )  # fmt: skip
        boxes = entry["boxes"]
        return cls(
            page=int(entry["page"]),
            state="done",
            width=int(entry["width"]),
            height=int(entry["height"]),
            text=str(entry["text"]),
            boxes=tuple(Box(box["label"], box["text"], _four(box["box"])) for box in boxes),
            figures=tuple(box["image"] for box in boxes if "image" in box),
            finish_detail=entry["finish_detail"],
            prompt_tokens=int(entry["usage"]["prompt_tokens"]),
            completion_tokens=int(entry["usage"]["completion_tokens"]),
            seconds=float(entry["seconds"]),
            timings=dict(entry["timings"]),
            confidence=Confidence(**entry["confidence"]) if "confidence" in entry else None,
            doubtful=bool(entry.get("doubtful")),
        )


def _link(path: str) -> str:
    """A path as Markdown takes it: spaces and brackets would end the link."""
    return "".join(
        letter if letter.isalnum() or letter in "/-._~" else quote(letter, errors="surrogateescape") for letter in path
    )


def _four(values: Iterable[int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = map(int, values)
    return x0, y0, x1, y1


class Writer(Protocol):
    """Writes one document: ``begin``, then ``page`` for each in order, then ``end``."""

    def begin(self, head: Mapping[str, Any]) -> None:
        """head : what is to be said of the whole document."""

    def page(self, result: PageResult) -> None: ...

    def end(self) -> None: ...


class MarkdownWriter:
    """Pages one after the other; a comment says where one begins and which could not be read."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._first = True

    def begin(self, head: Mapping[str, Any]) -> None:
        self._single = head["page_count"] == 1

    def page(self, result: PageResult) -> None:
        separator = "" if self._first else "\n"
        self._first = False
        comment = "" if self._single else f"<!-- page {result.page} -->\n\n"
        if result.state == "failed":
            reason = " ".join((result.error or "").split()).replace("--", "- -")
            self._file.write(f"{separator}<!-- page {result.page} could not be read: {reason} -->\n")
        else:
            text = result.markdown()
            if result.doubtful and result.confidence is not None:
                comment += f"<!-- page {result.page} is doubtful: confidence {result.confidence.mean:.3f} -->\n\n"
            self._file.write(f"{separator}{comment}{text}\n" if text else f"{separator}{comment}".rstrip("\n") + "\n")

    def end(self) -> None:
        self._file.flush()


class TextWriter:
    """Pages with a form feed between, as pdftotext writes them; a page that could not be read is empty."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._first = True

    def begin(self, head: Mapping[str, Any]) -> None: ...

    def page(self, result: PageResult) -> None:
        self._file.write("" if self._first else "\f")
        self._first = False
        text = to_markdown(result.text)
        self._file.write(f"{text}\n" if text else "")

    def end(self) -> None:
        self._file.flush()


class JsonWriter:
    """One object; a page on each line of its ``pages``, so that a long document needs no memory."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._separator = ""

    def begin(self, head: Mapping[str, Any]) -> None:
        fields = "".join(f"{_dump(key)}: {_dump(value)},\n" for key, value in head.items())
        self._file.write("{\n" + fields + '"pages": [')

    def page(self, result: PageResult) -> None:
        self._file.write(f"{self._separator}\n{_dump(result.to_json())}")
        self._separator = ","

    def end(self) -> None:
        self._file.write("\n]\n}\n")
        self._file.flush()


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


WRITERS: Mapping[str, Any] = {"md": MarkdownWriter, "json": JsonWriter, "txt": TextWriter}
