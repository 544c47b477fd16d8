"""What all requests together may hold: places, documents, bytes of bodies, decoded pixels, tokens.

All of a request's share of the server is taken here, and given back exactly once: at the end of a ``with`` block, or by
``release``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from server.api_errors import ClientGone, Unavailable

Kind = Literal["places", "documents", "bodies", "pixels", "tokens"]

PATIENCE = 10.0  # seconds that an image waits for other requests to give their pixels back
POLL_SECONDS = 0.1  # seconds between two looks whether the client is still there

_REFUSALS: Mapping[Kind, str] = {
    "places": "{held} requests are running or waiting; try again later",
    "documents": "{held} documents are being read; try again later, or send single images",
    "bodies": "the bodies of other requests have {held} bytes, and {limit} are the most; try again later",
    "pixels": "the images of other requests fill the memory; try again later",
    "tokens": "the requests that are here may take {held} tokens, and {limit} are the most; try again later",
}


class Held:
    """An amount that is held. A context manager; ``release`` may be called any number of times, by any thread."""

    def __init__(self, house: Admission, kind: Kind, amount: int) -> None:
        self._house, self._kind, self._amount = house, kind, amount
        self._lock = threading.Lock()

    def release(self) -> None:
        """Give the amount back. Only the first call does anything."""
        with self._lock:
            amount, self._amount = self._amount, 0
        if amount:
            self._house.give_back(self._kind, amount)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


@dataclass(frozen=True)
class Capacity:
    """The most of each kind that is held at once."""

    places: int = 68  # requests
    documents: int = 34  # requests with a document, counted in ``places`` too
    bodies: int = 1 << 30  # bytes, on disk or in memory
    pixels: int = 400_000_000  # decoded pixels, of four bytes each
    tokens: int = 10_000_000  # tokens that requests may still generate


class Admission:
    """Counts what is held. One for each server."""

    def __init__(self, capacity: Capacity | None = None) -> None:
        self.capacity = capacity or Capacity()
        self._changed = threading.Condition()
        self._held: dict[Kind, int] = dict.fromkeys(_REFUSALS, 0)

    def take(
        self, kind: Kind, amount: int = 1, *, wait: float = 0.0, is_gone: Callable[[], bool] = lambda: False
    ) -> Held:
        """Hold an amount; an amount above the capacity counts as the whole capacity.

        wait : seconds to wait for others to give enough back. is_gone : whether the client has hung up meanwhile.

        Raises
        ------
        Unavailable
            when other requests hold too much.
        ClientGone
            when ``is_gone`` turned true.
        """
        limit: int = getattr(self.capacity, kind)
        amount = min(amount, limit)
        until = time.monotonic() + wait
        with self._changed:
            while self._held[kind] + amount > limit:
                if is_gone():
                    raise ClientGone
                left = until - time.monotonic()
                if left <= 0:
                    message = _REFUSALS[kind].format(held=self._held[kind], limit=limit)
                    raise Unavailable(message, code="queue_full")
                self._changed.wait(min(left, POLL_SECONDS))
            self._held[kind] += amount
        return Held(self, kind, amount)

    def give_back(self, kind: Kind, amount: int) -> None:
        """See ``Held.release``."""
        with self._changed:
            self._held[kind] -= amount
            self._changed.notify_all()

    def kinds(self) -> dict[str, float]:
        """Amount of each kind that is held now."""
        with self._changed:
            return {str(kind): float(amount) for kind, amount in self._held.items()}

    def held(self, kind: Kind) -> int:
        """Amount of a kind that is held now."""
        with self._changed:
            return self._held[kind]
