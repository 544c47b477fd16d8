"""Page ranges as people write them: ``1-5,9`` or ``12-``."""

from __future__ import annotations

import re

from models.model_errors import InvalidInput

_RANGE = re.compile(r"(\d{1,9})\s*(?:(-)\s*(\d{1,9})?)?", re.ASCII)


def parse_pages(text: str, page_count: int, *, clip: bool = False) -> list[int]:
    """Page numbers such as ``1-5,9`` or ``12-`` as indices from 0, in ascending order, each once.

    clip : drop numbers beyond the last page; the result may be empty.

    Raises
    ------
    InvalidInput
        for any other text, and for a page beyond the last one unless ``clip`` is set.
    """
    chosen: set[int] = set()
    for first, last in page_ranges(text):
        if not clip and max(first, last or 0) > page_count:
            there = "is" if page_count == 1 else "are"
            raise InvalidInput(
                f"page {max(first, last or 0)} is beyond the end: there {there} {count_pages(page_count)}"
            )
        chosen.update(range(first - 1, min(last or page_count, page_count)))
    return sorted(chosen)


def page_ranges(text: str) -> list[tuple[int, int | None]]:
    """The ranges in ``1-5,9,12-``, from 1, both ends included; None as end means the last page.

    Raises
    ------
    InvalidInput
        for any other text.
    """
    ranges: list[tuple[int, int | None]] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            raise InvalidInput(f"pages {text[:60]!r} cannot be read; write numbers and ranges such as 1-5,9 or 12-")
        first = int(found[1])
        last = int(found[3]) if found[3] else None if found[2] else first
        if first < 1 or (last is not None and last < first):
            raise InvalidInput(f"pages {part.strip()[:60]!r} is no range; pages count from 1, the lower one first")
        ranges.append((first, last))
    return ranges


def count_pages(count: int) -> str:
    """``1 page``, ``2 pages``."""
    return f"{count} page" + "s" * (count != 1)
