"""One part of a page that is read by its parts: its prompt, its generation and the text so far. Used by ``pages``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from models.layout.parts import Part

from .confidence import TokenLogprob
from .requests import Finished, Generation, TextDelta, events_so_far

log = logging.getLogger(__name__)


@dataclass
class PartReading:
    """One part of a page, from its prompt to its end."""

    part: Part
    prompt: str | None  # None: a picture, which is not read
    generation: Generation | None = None
    begun: float = 0.0
    pieces: list[str] = field(default_factory=list)
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None
    error: str | None = None

    @property
    def done(self) -> bool:
        return self.prompt is None or self.finished is not None or self.error is not None

    @property
    def queued(self) -> bool:
        return self.generation is not None and self.generation.stage == "queued"

    def poll(self, timeout: float) -> None:
        """Take the part's new events."""
        if self.done or self.generation is None:
            return
        for event in events_so_far(self.generation, timeout):
            if isinstance(event, TextDelta):
                self.pieces.append(event.text)
                self.tokens += event.token_count
                self.logprobs += event.logprobs
            else:
                self.finished = event
                if event.detail == "error":
                    log.error("the engine failed on a part of a page: %s", event.error)
                    self.error = "the model failed on this part"
