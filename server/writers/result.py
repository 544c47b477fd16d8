"""The result of one page, and its JSON: in results, and in parts of unfinished documents.

``tools/docs/result.schema.json`` is the schema; ``SCHEMA_VERSION`` goes up with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self
from urllib.parse import quote

from models.blocks import KINDS, Block, blocks_of, figures_of
from models.grounding import Box, to_markdown, with_pictures
from models.turned import back, described_turn, turn_of, turned_blocks, turned_boxes, turned_size
from runtime.confidence import Confidence

from .markdown_blocks import markdown_blocks

# major: readers of the version before would be misled; minor: fields were added.
SCHEMA_VERSION = "1.2"

# Ends of a page's text that lost some of it -> what to do about it.
CUT_OFF = {
    "max_tokens": "raise --max-new-tokens",
    "context": "the model's own limit: use smaller pages, or --max-tiles with a lower number",
    "loop": "the model repeated itself: try a lower --no-repeat-ngram-size, or another --dpi",
    "deadline": "raise --deadline",
}


@dataclass(frozen=True)
class PageResult:
    """The result of one page. Boxes are on the page as read; writers give them on the unturned page."""

    page: int  # from 1
    state: Literal["done", "failed"]
    error: str | None = None
    transient: bool = False  # the page failed for a transient reason: --resume reads it again
    width: int = 0  # pixels of the page as it was read
    height: int = 0
    text: str = ""  # the answer, with its references
    boxes: tuple[Box, ...] = ()
    blocks: tuple[Block, ...] = ()  # in reading order, see page_blocks
    figures: tuple[str, ...] = ()  # path of each figure's picture, from the document's own folder
    finish_detail: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    timings: Mapping[str, float] = field(default_factory=dict)
    confidence: Confidence | None = None  # None: unknown to the server or the earlier run
    doubtful: bool = False  # the mean confidence is below --min-confidence
    warnings: tuple[str, ...] = ()  # what may be missing or wrong on the page, a sentence each
    truncated: bool = False  # the file broke off in this page
    rotated: float = 0  # degrees clockwise by which the page was turned before it was read

    @property
    def size_as_it_came(self) -> tuple[int, int]:
        """Width and height in pixels of the unturned page."""
        return turned_size((self.width, self.height), self.rotated)

    def markdown(self) -> str:
        """The text with figures as links, or without them where there are no pictures."""
        links = [_link(path) for path in self.figures]
        places = [box.box for box in figures_of(self.boxes, self.text)]
        text = with_pictures(self.text, dict(zip(places, links, strict=False)))
        return to_markdown(text, links.__getitem__ if links else None)

    @property
    def numbered(self) -> bool:
        """Whether the boxes are those of the page's blocks, one each, in reading order."""
        return bool(self.boxes) and [box.box for box in self.boxes] == [block.box for block in self.blocks]

    def to_json(self) -> dict[str, Any]:
        """As JSON's types."""
        if self.state == "failed":
            failure = {"page": self.page, "state": self.state, "error": self.error, "seconds": round(self.seconds, 3)}
            return {**failure, "transient": True} if self.transient else failure
        shown = figures_of(self.boxes, self.text)
        figures = iter(self.figures)
        boxes: list[dict[str, Any]] = []
        size, undone = (self.width, self.height), back(self.rotated)
        for box, place in zip(self.boxes, turned_boxes(self.boxes, size, undone), strict=True):
            entry: dict[str, Any] = {"label": box.label, "text": box.text, "box": list(place.box)}
            if box in shown and (picture := next(figures, None)) is not None:
                entry["image"] = picture
            boxes.append(entry)
        return {
            "page": self.page,
            "state": self.state,
            **dict(zip(("width", "height"), self.size_as_it_came, strict=True)),
            **described_turn(self.rotated),
            "markdown": self.markdown(),
            "text": self.text,
            "boxes": boxes,
            "blocks": self._described_blocks(),
            "finish_detail": self.finish_detail,
            "usage": {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens},
            "seconds": round(self.seconds, 3),
            "timings": dict(self.timings),
            **({"confidence": asdict(self.confidence)} if self.confidence else {}),
            **({"doubtful": True} if self.doubtful else {}),
            "warnings": list(self.warnings),
            **({"truncated": True} if self.truncated else {}),
        }

    def _described_blocks(self) -> list[dict[str, Any]]:
        figures = iter(self.figures)
        shown = {box.box for box in figures_of(self.boxes, self.text)}
        undone = turned_blocks(self.blocks, (self.width, self.height), back(self.rotated))
        described = [describe_block(block) for block in undone]
        for entry, block in zip(described, self.blocks, strict=True):
            if block.box in shown and (picture := next(figures, None)) is not None:
                entry["image"] = picture
        return described

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """The result from the form of ``to_json``.

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
        came, rotated = (int(entry["width"]), int(entry["height"])), turn_of(entry)
        width, height = turned_size(came, rotated)
        places = tuple(Box(box["label"], box["text"], _four(box["box"])) for box in boxes)
        return cls(
            page=int(entry["page"]),
            state="done",
            width=width,
            height=height,
            text=str(entry["text"]),
            boxes=turned_boxes(places, came, rotated),
            blocks=turned_blocks(map(block_of, entry.get("blocks", ())), came, rotated),
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
            rotated=rotated,
        )


def page_blocks(text: str, boxes: Sequence[Box], blocks: Sequence[Block]) -> tuple[Block, ...]:
    """A page's blocks: the reader's, else by the answer's references, else by its Markdown.

    Blocks by Markdown have no boxes. text : the answer, with its references.
    """
    return tuple(blocks) or blocks_of(boxes) or markdown_blocks(text)


def describe_block(block: Block) -> dict[str, Any]:
    """A block as JSON's types; unknown fields are left out, except the box."""
    said = asdict(block)
    always = {"kind": block.kind, "text": block.text, "box": None if block.box is None else list(block.box)}
    return always | {name: value for name, value in said.items() if name not in always and value not in (None, "", 0)}


def block_of(entry: Mapping[str, Any]) -> Block:
    """The block from the form of ``describe_block``; other fields are ignored.

    Raises
    ------
    KeyError, TypeError, ValueError
        for anything else.
    """
    if entry["kind"] not in KINDS:
        raise ValueError(f"{entry['kind']!r} is no kind of a block")
    known = {one.name for one in fields(Block)} - {"box"}
    box = None if entry["box"] is None else _four(entry["box"])
    return Block(box=box, **{name: value for name, value in entry.items() if name in known})


def _link(path: str) -> str:
    """A path escaped for Markdown: spaces and brackets would end the link."""
    return "".join(
        letter if letter.isalnum() or letter in "/-._~" else quote(letter, errors="surrogateescape") for letter in path
    )


def _four(values: Iterable[int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = map(int, values)
    return x0, y0, x1, y1
