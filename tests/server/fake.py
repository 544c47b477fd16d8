"""A scripted ``TextModel``: real threads and queues, no tensors.

What it says is decided by a function of the request.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from models.grounding import Box, parse_boxes
from models.model_errors import InvalidInput
from models.settings import InferenceSettings
from runtime.requests import EngineLoad, FinishDetail, Finished, FinishReason, Request, Stage, TextDelta, Timings, Usage
from runtime.runtime_errors import EngineClosed, QueueFull

# A step: text to say, seconds to be silent, or how it ends.
Step = str | float | tuple[FinishReason, FinishDetail]
Script = Callable[[Request], Iterable[Step]]


def hello(request: Request) -> Iterable[Step]:
    return ["Hello", ", ", "world", "."]


class FakeGeneration:
    """One scripted answer."""

    def __init__(self, request: Request, model: ScriptedModel) -> None:
        self.request, self._model = request, model
        self._events: queue.SimpleQueue[TextDelta | Finished] = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self.ended = threading.Event()
        self._submitted = time.monotonic()

    def next_event(self, timeout: float | None = None) -> TextDelta | Finished | None:
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    @property
    def stage(self) -> Stage:
        return "reading"

    def cancel(self) -> None:
        self.cancelled.set()

    def run(self) -> None:
        said = 0
        ending: tuple[FinishReason, FinishDetail] = ("stop", "eos")
        error = None
        try:
            for step in self._model.script(self.request):
                if self.cancelled.is_set():
                    ending = ("cancelled", "cancelled")
                    break
                if isinstance(step, tuple):
                    ending = step
                    break
                if isinstance(step, float):
                    self.cancelled.wait(step)
                    continue
                if said >= self.request.settings.max_new_tokens:
                    ending = ("length", "max_tokens")
                    break
                said += 1
                self._events.put(TextDelta(step))
        except Exception as problem:
            ending, error = ("stop", "error"), str(problem)
        images = len(self.request.images) * 10
        usage = Usage(prompt_tokens=5 + images, completion_tokens=said, image_tokens=images)
        seconds = time.monotonic() - self._submitted
        timings = Timings(decode=seconds, first_token=seconds)
        self._model.leave(self)
        self._events.put(Finished(ending[0], ending[1], usage, timings, error))
        self.ended.set()


class ScriptedModel:
    """See ``runtime.requests.TextModel``."""

    def __init__(self, script: Script = hello, slots: int = 4, max_queue: int = 64, keeps: bool = True) -> None:
        """keeps : whether ``requests`` has all that came, with their pictures."""
        self.script, self._slots, self._max_queue, self._keeps = script, slots, max_queue, keeps
        self._changed = threading.Condition()
        self._waiting: list[FakeGeneration] = []
        self._running: list[FakeGeneration] = []
        self.requests: list[Request] = []
        self.closed = False
        self.refuse: Exception | None = None
        self.deepest = 0  # most requests that have waited at once

    def submit(self, request: Request) -> FakeGeneration:
        request = replace(request, images=list(request.images))  # each is made once, and now
        if request.prompt.count("<image>") != len(request.images):
            raise InvalidInput("slots and images differ")
        with self._changed:
            if self.closed:
                raise EngineClosed("closed")
            if self.refuse is not None:
                raise self.refuse
            if len(self._waiting) >= self._max_queue:
                raise QueueFull(len(self._waiting), 7)
            if self._keeps:
                self.requests.append(request)
            generation = FakeGeneration(request, self)
            self._waiting.append(generation)
            self.deepest = max(self.deepest, len(self._waiting))
        threading.Thread(target=self._serve, args=(generation,), daemon=True).start()
        return generation

    def _serve(self, generation: FakeGeneration) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._running) < self._slots)
            self._waiting.remove(generation)
            self._running.append(generation)
        generation.run()

    def leave(self, generation: FakeGeneration) -> None:
        with self._changed:
            self._running.remove(generation)
            self._changed.notify_all()

    def check(self, prompt: str, settings: InferenceSettings) -> None: ...

    def boxes(self, text: str, width: int, height: int) -> list[Box]:
        return parse_boxes(text, width, height)

    def drain(self, timeout: float | None = None) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._running, timeout)

    def close(self) -> None:
        with self._changed:
            self.closed = True
            for generation in [*self._waiting, *self._running]:
                generation.cancel()

    @property
    def alive(self) -> bool:
        return not self.closed

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def loads(self) -> list[EngineLoad]:
        return [EngineLoad("cpu", self.slots, self.active, self.queue_depth, self.alive)]

    @property
    def queue_depth(self) -> int:
        return len(self._waiting)

    @property
    def active(self) -> int:
        return len(self._running)
