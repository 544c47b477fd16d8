"""One request in flight: its events, its answer, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from types import MappingProxyType, TracebackType
from typing import Any, Self

from PIL import Image

from models.model_errors import InvalidInput
from runtime.confidence import TokenLogprob
from runtime.library.source import ModelKey
from runtime.requests import Finished, Generation, Stage, TextDelta
from server.api_errors import ClientGone

from .answers import engine_error
from .contents import Content
from .logs import RequestRecord
from .pool import Lease

POLL_SECONDS = 0.1  # seconds of silence between two looks whether the client is still there
PING_SECONDS = 5.0  # seconds of silence after which a stream gets a comment


class RunningRequest:
    """Iterate over its events or collect its answer. A context manager that gives back at its end all that it holds."""

    def __init__(
        self, generation: Generation, record: RequestRecord, is_gone: Callable[[], bool], held: ExitStack,
        *, content: Content | None = None, lease: Lease[ModelKey] | None = None,
        notes: Mapping[str, Any] = MappingProxyType({}), progress: bool = False,
    ) -> None:  # fmt: skip
        """held : closed at the end.

        content, lease : what is read, by which model; None for an answer without a model.
        notes : what the answer's ``ocr`` field has besides. progress : yield the request's stages as events, too.
        """
        self.record = record
        self._generation, self._is_gone, self._held = generation, is_gone, held
        self._content, self._lease, self._notes = content, lease, notes
        self._progress = progress
        self._pieces: list[TextDelta] = []
        self.logprobs: list[TokenLogprob] = []  # log-probabilities of the answer so far, where asked for
        self._closed = False

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(piece.text for piece in self._pieces)

    def report(self) -> dict[str, Any]:
        """Notes, and boxes and pages where the request asked for them. Called after the last event."""
        if self._content is None or self._lease is None:
            return dict(self._notes)
        assert self.record.result is not None
        return {**self._notes, **self._content.report(self._lease.model, self._pieces, self.record.result)}

    def draw(self, number: int) -> Image.Image:
        """A page of the document by its number, from 1, until the request is closed.

        Raises
        ------
        InvalidInput
            when there is no document.
        """
        if self._content is None:
            raise InvalidInput("there is no document")
        return self._content.draw(number)

    def events(self) -> Iterator[TextDelta | Finished | Stage | None]:
        """The events up to and including ``Finished``; None where a stream should send a ping.

        Raises
        ------
        ClientGone
            as soon as the client has hung up.
        """
        last = time.monotonic()
        stage: Stage | None = None
        while True:
            event = self._generation.next_event(timeout=POLL_SECONDS)
            if self._is_gone():
                raise ClientGone
            if self._progress and stage != (stage := self._generation.stage):
                yield stage
            if event is not None:
                last = time.monotonic()
                if isinstance(event, Finished):
                    self.record.result = event
                else:
                    self._pieces.append(event)
                    self.logprobs += event.logprobs
                yield event
                if isinstance(event, Finished):
                    return
            elif time.monotonic() - last >= PING_SECONDS:
                last = time.monotonic()
                yield None

    def collect(self) -> tuple[str, Finished]:
        """Wait for the whole answer.

        Raises
        ------
        ClientGone
            as soon as the client has hung up.
        ApiError
            when the engine failed.
        """
        for event in self.events():
            if isinstance(event, Finished):
                if event.detail == "error":
                    raise engine_error(event)
                return self.text, event
        raise AssertionError("a generation ended without its last event")

    def cancel(self) -> None:
        """End the request early; the last event still comes."""
        self._generation.cancel()

    def close(self, outcome: str | None = None) -> None:
        """Cancel the generation, give back what is held, write the record. Idempotent, in any state."""
        if self._closed:
            return
        self._closed = True
        result = self.record.result
        self._generation.cancel()
        self._held.close()
        self.record.finish(outcome or (_outcome(result) if result is not None else "client_gone"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _outcome(finished: Finished) -> str:
    return {"eos": "ok", "stop_string": "ok", "no_image": "ok", "max_tokens": "length", "context": "length"}.get(
        finished.detail, finished.detail
    )
