"""Parcels of pages, and the tasks that draw them. A task of Ray runs in a process that is kept for the next one."""

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

PARCEL = 16  # pages of a task: what a dead machine costs the drawing, and how fine the work is spread


@dataclass(frozen=True)
class Drawing:
    """How pages are drawn, and within which limits."""

    how: How
    limits: Limits


@dataclass(frozen=True)
class Wanted:
    """Pages of one document."""

    number: int  # of the document in the run
    source: DocumentSource
    pictures: Pictures  # that are made of its pages
    pages: Sequence[int]  # from 0


def parcels(
    plans: Sequence[DocumentPlan], left: Sequence[Sequence[int]], pictures: Callable[[DocumentPlan], Pictures],
    size: int,
) -> Iterator[dict[str, bytes]]:  # fmt: skip
    """The pages that are still to be read, in parcels of ``size``: rows of a dataset. left : pages of each plan."""
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
    """The same as ``parcels`` for pages that are read together: a row for each document."""
    for number, (plan, todo) in enumerate(zip(plans, left, strict=True)):
        if todo:
            yield {"parcel": pickle.dumps([Wanted(number, plan.source, pictures(plan), todo)])}


def draw(row: dict[str, Any], drawing: Drawing) -> Iterator[dict[str, Any]]:
    """The pages of a parcel, each a row of RGB pixels, or of the reason why there are none."""
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
    """The document, on this machine.

    Raises
    ------
    InvalidInput
        when it cannot be opened here.
    """
    try:
        return wanted.source.open(drawing.how, _workers(drawing.limits), never)
    except (InvalidInput, OSError) as error:
        raise InvalidInput(f"{error} (on {_node()}: do all machines of the cluster see the file?)") from error


@functools.cache
def _workers(limits: Limits) -> Workers:
    """The processes that strangers' files are decoded in. One: Ray runs as many tasks as there are CPUs."""
    return Workers(1, limits)


def _drawn(wanted: Wanted, index: int, document: Document) -> dict[str, Any]:
    try:
        drawn = document.draw(index)
    except (InvalidInput, Stopped) as error:
        return _row(wanted, index, error=str(error))
    return _row(wanted, index, drawn)


def drawn_of(row: dict[str, Any]) -> Drawn:
    """The page in a row.

    Raises
    ------
    InvalidInput
        when it could not be drawn, with the reason.
    """
    if row["error"]:
        raise InvalidInput(row["error"])
    size = row["width"], row["height"]
    image = Image.frombuffer("RGB", size, row["pixels"], "raw", "RGB", 0, 1)
    return Drawn(image, tuple(row["warnings"]), row["truncated"], row["rotated"])


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
