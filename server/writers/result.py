"""What is kept of a page that was read, and how it goes through JSON: results, and the parts of unfinished documents.

``tools/docs/result.schema.json`` is the schema; ``SCHEMA_VERSION`` goes up with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self
from urllib.parse import quote

from models.grounding import FIGURE_LABEL, Box, to_markdown
from runtime.confidence import Confidence

# major: a reader of the one before would be misled; minor: something was added.
SCHEMA_VERSION = "1.0"

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
    warnings: tuple[str, ...] = ()  # what may be missing or wrong of the page, a sentence each
    truncated: bool = False  # the file broke off, and this is what is there of the page

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
            "warnings": list(self.warnings),
            **({"truncated": True} if self.truncated else {}),
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
            warnings=tuple(map(str, entry.get("warnings", ()))),
            truncated=bool(entry.get("truncated")),
        )


def _link(path: str) -> str:
    """A path as Markdown takes it: spaces and brackets would end the link."""
    return "".join(
        letter if letter.isalnum() or letter in "/-._~" else quote(letter, errors="surrogateescape") for letter in path
    )


def _four(values: Iterable[int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = map(int, values)
    return x0, y0, x1, y1
