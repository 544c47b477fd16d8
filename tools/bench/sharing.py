"""How requests share one model: what a stream keeps beside images, how soon a request ends, who overtakes whom.

Requests are made for the engine itself, with as many vision passes as a case wants over a prompt of any length: the
passes are a real page's, what they find is thrown away.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.family import PreparedImage
from models.settings import InferenceSettings
from runtime.model import Model
from runtime.requests import Finished, TextDelta
from runtime.sequence import Sequence

from .material import endless_copy, page_image
from .plan import Plan

VIEWS = 10  # of the request beside a stream
DOCUMENT = 80  # passes of the request that is overtaken
_ALONE = 64  # tokens that a stream's own pace is taken from, before and after
_MOMENTS = 6  # at which requests are ended, in each way
_SLOTS = 4
_PATIENCE = 3600.0  # seconds


class Sharing:
    """See ``worker.Subject``. Cases: 0 a stream beside images, 1 ends, 2 a picture beside a document."""

    def __init__(self, folder: Path, threads: int, plan: Plan) -> None:
        self._copy = tempfile.TemporaryDirectory(prefix=".bench-", dir=folder.parent)
        copy = endless_copy(folder, Path(self._copy.name))
        self._model = Model.open(copy, device="cpu", threads=threads, slots=_SLOTS, vision_cache_mb=0)
        self._engine = self._model.engine
        self._feeds = self._model.family.prepare_image(page_image(plan, 0), {}).passes[0]()
        self._rng = np.random.default_rng(0)

    def prepare(self, part: str, value: int) -> None:
        self._wait(self._submit(passes=1, tokens=1))

    def sample(self, part: str, value: int) -> dict[str, float]:
        measured: dict[int, Callable[[], dict[str, float]]] = {0: self._stream, 1: self._ends, 2: self._overtake}
        return measured[value]()

    def _stream(self) -> dict[str, float]:
        """Paces are tokens a second; the stream is measured alone, while views are encoded, and alone again."""
        stream = self._submit(tokens=self._model.manifest.max_length)
        before = self._pace(stream, lambda count: count >= _ALONE)
        beside = self._submit(passes=VIEWS, tokens=1)
        pace = self._pace(stream, lambda count: beside.encoded)
        self._wait(beside)
        after = self._pace(stream, lambda count: count >= _ALONE)
        stream.cancel()
        return {"% of its pace lost": 100 * (1 - 2 * pace / (before + after)), "tokens/s beside": pace}

    def _pace(self, stream: Sequence, done: Callable[[int], bool]) -> float:
        while not stream.tokens:
            time.sleep(0.001)
        started, first = time.perf_counter(), len(stream.tokens)
        while not done(len(stream.tokens) - first):
            if stream.finished:
                raise RuntimeError("the stream came to the end of its context; take a model with a longer one")
            time.sleep(0.001)
        return (len(stream.tokens) - first) / (time.perf_counter() - started)

    def _ends(self) -> dict[str, float]:
        """Seconds from a request's cancel or deadline until the device is free again; the worst of all moments."""
        ask = {"passes": 2, "prompt": min(2000, self._model.manifest.max_length - 100), "tokens": 20}
        started = time.perf_counter()
        self._wait(self._submit(**ask))
        whole = time.perf_counter() - started
        worst = {"s to cancel": 0.0, "s to the deadline's end": 0.0}
        for moment in (self._rng.random(_MOMENTS) * whole).tolist():
            request = self._submit(**ask)
            time.sleep(moment)
            ended = time.perf_counter()
            request.cancel()
            worst["s to cancel"] = max(worst["s to cancel"], self._free(ended))
            ended = time.perf_counter() + moment
            self._wait(self._submit(**ask, deadline=moment))
            worst["s to the deadline's end"] = max(worst["s to the deadline's end"], self._free(ended))
        return worst

    def _free(self, since: float) -> float:
        if not self._engine.drain(_PATIENCE):
            raise RuntimeError("a request did not end")
        return time.perf_counter() - since

    def _overtake(self) -> dict[str, float]:
        """Passes of the document that are begun while a picture, sent during one of them, waits for its first token."""
        document = self._submit(passes=DOCUMENT, tokens=1)
        while document.passes_left > DOCUMENT - 2:
            time.sleep(0.001)
        left, sent = document.passes_left, time.perf_counter()
        picture = self._submit(passes=1, tokens=1000)
        while not picture.tokens:
            time.sleep(0.0005)
        values = {
            "passes of the other": 1.0 + left - document.passes_left,  # the one that ran just then included
            "s to the first token": time.perf_counter() - sent,
        }
        for request in (document, picture):
            request.cancel()
        self._free(0)
        return values

    def _submit(self, *, passes: int = 0, prompt: int = 20, tokens: int, deadline: float | None = None) -> Sequence:
        hidden = self._model.manifest.sizes.hidden_size
        image = PreparedImage([lambda: self._feeds] * passes, 1, lambda outputs: np.zeros((1, hidden), np.float32))
        vocabulary = self._model.vocabulary
        ids = self._rng.choice([id for id in range(200) if id != vocabulary.image], prompt).tolist()
        settings = InferenceSettings(max_new_tokens=tokens, deadline_s=deadline, stop_on_loop=False)
        request = Sequence(
            [*ids, vocabulary.image] if passes else ids, [image] if passes else [], settings, vocabulary,
            self._model.manifest.max_length,
        )  # fmt: skip
        self._engine.submit(request)
        return request

    def _wait(self, request: Sequence) -> None:
        while not isinstance(event := request.next_event(_PATIENCE), Finished):
            assert isinstance(event, TextDelta)
        if event.error is not None:
            raise RuntimeError(event.error)
