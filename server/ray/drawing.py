"""Parcels of pages, and the tasks that draw those pages; ``batch`` makes a dataset of both.

Rows of the dataset go from process to process, so that what is more than numbers and bytes is pickled in them.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from models.model_errors import InvalidInput
from runtime.documents import Document, Drawn, How, Limits, Stopped, Workers, never
from server.command.plan import DocumentPlan
from server.command.source import DocumentSource
from server.writers.figures import Pictures

PARCEL = 16  # pages of a task: a dead machine costs as many; smaller parcels spread the work more evenly


@dataclass(frozen=True)
class Drawing:
    """How pages are drawn, and within which limits."""

    how: How
    limits: Limits


@dataclass(frozen=True)
class Wanted:
    """Pages of one document that are to be read."""

    number: int  # of the document in the run
    source: DocumentSource
    pictures: Pictures  # that the output wants of each page
    pages: Sequence[int]  # from 0


def parcels(
    plans: Sequence[DocumentPlan], left: Sequence[Sequence[int]], pictures: Callable[[DocumentPlan], Pictures],
    size: int,
) -> Iterator[dict[str, bytes]]:  # fmt: skip
    """The pages that are still to be read, as rows of a dataset. left : of each plan. size : pages of a parcel."""
    parcel: list[Wanted] = []
    room = size
    for number, (plan, todo) in enumerate(zip(plans, left, strict=True)):
        start = 0
        while start < len(todo):
            part = todo[start : start + room]
            parcel.append(Wanted(number, plan.source, pictures(plan), part))
            start, room = start + len(part), room - len(part)
            if not room:
                yield {"parcel": pickle.dumps(parcel)}
                parcel, room = [], size
    if parcel:
        yield {"parcel": pickle.dumps(parcel)}


def documents(
    plans: Sequence[DocumentPlan], left: Sequence[Sequence[int]], pictures: Callable[[DocumentPlan], Pictures]
) -> Iterator[dict[str, bytes]]:
    """As ``parcels``, for documents whose pages are read together: each row is a whole document."""
    for number, (plan, todo) in enumerate(zip(plans, left, strict=True)):
        if todo:
            yield {"parcel": pickle.dumps([Wanted(number, plan.source, pictures(plan), todo)])}


def draw(row: dict[str, Any], drawing: Drawing) -> Iterator[dict[str, Any]]:
    """Draw the pages of a parcel: a row of RGB pixels for each, or of the reason why the page has none."""
    for wanted in pickle.loads(row["parcel"]):
        try:
            document = open_wanted(wanted, drawing)
        except InvalidInput as error:
            for index in wanted.pages:
                yield _row(wanted, index, error=str(error))
            continue
        with document:
            for index in wanted.pages:
                yield _drawn(wanted, index, document)


def open_wanted(wanted: Wanted, drawing: Drawing) -> Document:
    """Open the document on this machine of the cluster.

    Raises
    ------
    InvalidInput
        when the document cannot be opened here; the message names the machine.
    """
    try:
        return wanted.source.open(drawing.how, _workers(drawing.limits), never)
    except (InvalidInput, OSError) as error:
        raise InvalidInput(f"{error} (on {_node()}: do all machines of the cluster see the file?)") from error


@functools.cache
def _workers(limits: Limits) -> Workers:
    """One process that decodes strangers' files, kept from task to task: Ray itself runs a task on each CPU."""
    return Workers(1, limits)


def _drawn(wanted: Wanted, index: int, document: Document) -> dict[str, Any]:
    try:
        drawn = document.draw(index)
    except (InvalidInput, Stopped) as error:
        return _row(wanted, index, error=str(error))
    return _row(wanted, index, drawn)


def drawn_of(row: dict[str, Any]) -> Drawn:
    """The drawn page of a row that ``draw`` made.

    Raises
    ------
    InvalidInput
        when the page could not be drawn, with the reason.
    """
    if row["error"]:
        raise InvalidInput(row["error"])
    size = row["width"], row["height"]
    image = Image.frombuffer("RGB", size, row["pixels"], "raw", "RGB", 0, 1)
    return Drawn(image, tuple(row["warnings"]), row["truncated"], rotated=row["rotated"])


def _row(wanted: Wanted, index: int, drawn: Drawn | None = None, *, error: str = "") -> dict[str, Any]:
    width, height = drawn.image.size if drawn else (0, 0)
    return {
        "number": wanted.number, "index": index, "pixels": drawn.image.tobytes() if drawn else b"", "error": error,
        "width": width, "height": height, "warnings": list(drawn.warnings) if drawn else [""][:0],
        "truncated": drawn is not None and drawn.truncated, "rotated": drawn.rotated if drawn else 0,
        "pictures": pickle.dumps(wanted.pictures), "name": wanted.source.name.encode("utf-8", "surrogateescape"),
    }  # fmt: skip


def _node() -> str:
    import ray

    return str(ray.util.get_node_ip_address())
