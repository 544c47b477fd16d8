"""The task ``document``: a page's parts are read in the engine's batch and put together again.

A page is one ``Generation`` made of its parts' generations. The detector runs on its own thread, a page at a time,
while parts of other pages are decoded; the parts' answers are passed on in reading order.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from typing import Protocol

from PIL import Image

from models.blocks import Block
from models.family import OutputFilter
from models.grounding import to_markdown
from models.layout.page import Page, PartAnswer
from models.layout.page_rules import PageRules
from models.layout.parts import Part, is_blank, parts_of, picture_of, whole_page
from models.layout.regions import Region
from models.layout.rules import DetectionRules
from models.model_errors import InvalidInput
from models.pixels import upright_rgb
from models.settings import InferenceSettings

from .confidence import TokenLogprob
from .part_reading import PartReading
from .requests import REASONS, FinishDetail, Finished, Generation, Request, Stage, TextDelta
from .runtime_errors import EngineClosed, QueueFull
from .totals import confidence_of, timings_of, usage_of

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05  # seconds between two looks at the parts that run beside the one whose text comes next
RETRY_SECONDS = 0.2  # seconds until a part that the engine's full queue refused is submitted again

_WHOLE = frozenset({"eos", "stop_string"})  # how a part ends that was read whole


class Detector(Protocol):
    """Finds the regions of a page."""

    def detect(self, image: Image.Image, rules: DetectionRules | None = None) -> list[Region]:
        """The regions in reading order; may take seconds. rules : which boxes stay; None: the detector's own rules."""


class Recogniser(Protocol):
    """The model that reads the parts."""

    def submit(self, request: Request) -> Generation:
        """See ``TextModel.submit``."""

    def filter_for(self, prompt: str, settings: InferenceSettings) -> OutputFilter:
        """A fresh filter for the answer to ``prompt``."""

    @property
    def slots(self) -> int:
        """Requests decoded together."""

    @property
    def queue_depth(self) -> int:
        """Requests waiting for the engine."""


class PageReader:
    """Reads pages with one detector and one model. May be used by any number of threads."""

    def __init__(
        self, open_detector: Callable[[], Detector], model: Callable[[], Recogniser | None],
        prompts: Mapping[str, str], rules: PageRules,
    ) -> None:  # fmt: skip
        """open_detector : called once, with the first page. prompts : by element, see ``models.layout.page_rules``.

        model : gives the model while it lives; a page in flight keeps the model alive.
        """
        self.prompts, self.rules = prompts, rules
        self._open, self._model = open_detector, model
        self._detector: Detector | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="layout")

    def submit(self, request: Request) -> PageGeneration:
        """Begin to read a page, the only image of a request.

        Raises
        ------
        InvalidInput
            when there is not exactly one image.
        EngineClosed
            when the model was closed.
        """
        if len(request.images) != 1:
            raise InvalidInput(
                f"task document takes a page apart, one at a time, and there are {len(request.images)} images; send "
                "them one by one, or ask for another task"
            )
        model = self._model()
        if model is None:
            raise EngineClosed("the model that read with this is gone")
        try:
            return PageGeneration(self, model, request)
        except RuntimeError as error:  # of starting the thread
            raise EngineClosed("the model was closed") from error

    def find(self, image: Image.Image, rules: PageRules) -> Future[_Found]:
        """Queue a page for the detector."""
        return self._thread.submit(self._detect, image, rules.boxes)

    def prompt_of(self, part: Part) -> str | None:
        """The prompt for a part; None: the model does not read such parts."""
        if part.element in ("table", "formula"):
            return self.prompts.get(part.element, self.prompts["text"])
        return self.prompts.get(part.element) if part.element is not None else None

    def close(self) -> None:
        """Take no more pages. Idempotent."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _detect(self, image: Image.Image, rules: DetectionRules | None) -> _Found:
        started = time.monotonic()
        if self._detector is None:
            self._detector = self._open()
        regions = self._detector.detect(image, rules)
        return _Found(regions, time.monotonic() - started)


@dataclass(frozen=True)
class _Found:
    regions: list[Region]
    seconds: float


class PageGeneration:
    """See ``runtime.requests.Generation``. For one consumer thread; ``cancel`` may be called from any."""

    def __init__(self, reader: PageReader, model: Recogniser, request: Request) -> None:
        self._reader, self._rules = reader, request.rules or reader.rules
        self._model: Recogniser | None = model  # kept until the last part has been read, even when its owner lets it go
        (image,) = (upright_rgb(one, request.settings.transparency) for one in request.images)
        self._image: Image.Image | None = image  # kept until the last part has been cut out
        self._size = image.size
        self._started = time.monotonic()
        self._future = reader.find(image, self._rules)
        self._request = replace(request, images=())  # of its parts
        self._found: _Found | None = None
        self._found_at = 0.0
        self._readings: list[PartReading] = []
        self._begun = 0  # number of parts that have begun
        self._current = 0  # index of the part whose text is passed on next
        self._page = Page(*self._size, self._rules)
        self._events: deque[TextDelta | Finished] = deque()
        self._tokens, self._logprobs = 0, list[TokenLogprob]()  # tokens of parts whose text is still held back
        self._first_token: float | None = None
        self._not_before = 0.0  # when to try the full queue again
        self._over = self._cancelled = False

    def next_event(self, timeout: float | None = None) -> TextDelta | Finished | None:
        """See ``Generation``."""
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while not self._events and not self._over:
            self._step()
            left = end - time.monotonic()
            if self._events or self._over or left <= 0:
                break
            self._wait(min(left, POLL_SECONDS))
        return self._events.popleft() if self._events else None

    @property
    def stage(self) -> Stage:
        """See ``Generation``: "seeing" while the detector looks for parts."""
        if self._found is None:
            return "seeing" if self._future.running() else "queued"
        return "reading"

    @property
    def generations(self) -> list[Generation]:
        """Generations of the parts submitted so far, in reading order."""
        return [one.generation for one in self._readings if one.generation is not None]

    def cancel(self) -> None:
        """See ``Generation``. A detection in flight runs on, and its result is dropped."""
        self._cancelled = True
        self._future.cancel()
        for generation in self.generations:
            generation.cancel()

    def _step(self) -> None:
        """Go on as far as is possible without waiting."""
        if self._found is None and (self._cancelled or self._late):
            self._finish()
        elif self._found is None and self._future.done():
            self._take_regions()
        if self._found is None:
            return
        while self._begin():
            pass
        for reading in self._readings[self._current : self._begun]:
            reading.poll(0.0)
        self._pass_on()

    def _take_regions(self) -> None:
        assert self._image is not None
        try:
            self._found = self._future.result()
            parts = parts_of(self._found.regions, self._rules)
            if not self._found.regions and self._rules.whole_when_empty and not is_blank(self._image):
                parts = [whole_page(*self._size)]
        except Exception as error:  # whatever the detector raises ends this page only
            log.exception("the layout of a page could not be found")
            self._finish("error", f"the layout of the page could not be found: {error}")
            return
        self._found_at = time.monotonic()
        self._readings = [PartReading(part, self._reader.prompt_of(part)) for part in parts]

    def _begin(self) -> bool:
        """Submit the next part, unless more parts are in flight than the engine decodes together.

        While other requests wait for the engine, a page has one part in flight, and takes its turn like a single image.
        """
        if self._begun == len(self._readings) or self._cancelled or self._late:
            return False
        reading = self._readings[self._begun]
        if reading.prompt is not None and not self._submit(reading, reading.prompt):
            return False
        self._begun += 1
        if self._begun == len(self._readings):
            self._image = None
        return True

    def _submit(self, reading: PartReading, prompt: str) -> bool:
        """Submit a part to the engine; False when the queue is full."""
        model = self._model
        assert model is not None  # the page has not ended
        running = [one for one in self._readings[self._current : self._begun] if not one.done]
        others = model.queue_depth - sum(one.queued for one in running)
        if len(running) > model.slots or (running and others > 0) or time.monotonic() < self._not_before:
            return False
        settings = self._request.settings
        if settings.deadline_s is not None:
            settings = replace(settings, deadline_s=max(0.0, self._seconds_left))
        try:
            assert self._image is not None
            picture = picture_of(reading.part, self._image, self._rules)
            reading.begun = time.monotonic()
            reading.generation = model.submit(
                replace(self._request, prompt=prompt, images=[picture], settings=settings, raw=True)
            )
        except QueueFull:
            self._not_before = time.monotonic() + RETRY_SECONDS
            return False
        except (InvalidInput, EngineClosed) as error:
            reading.error = str(error)
            return True
        if self._cancelled:  # cancelled meanwhile, by a thread that did not see this part
            reading.generation.cancel()
        return True

    def _pass_on(self) -> None:
        """Pass on the text of finished parts, up to the first unfinished one."""
        while self._current < self._begun and self._readings[self._current].done:
            self._give(self._readings[self._current])
            self._current += 1
        unread = self._begun < len(self._readings)
        if self._current == self._begun and (not unread or self._cancelled or self._late):
            for reading in self._readings[self._begun :]:
                self._page.add(reading.part, PartAnswer())
            self._say(self._page.finish(), last=True)
            self._finish()

    def _give(self, reading: PartReading) -> None:
        self._tokens += reading.tokens
        self._logprobs += reading.logprobs
        if self._first_token is None and reading.finished and (seconds := reading.finished.timings.first_token):
            self._first_token = reading.begun - self._started + seconds
        confidence = reading.finished.confidence if reading.finished else None
        answer = PartAnswer(self._text(reading), None if confidence is None else confidence.mean)
        self._say(self._page.add(reading.part, answer))

    def _text(self, reading: PartReading) -> str:
        """A part's text, as the model's family presents it."""
        text = "".join(reading.pieces)
        if reading.prompt is None or self._request.raw:
            return text
        assert self._model is not None  # the page has not ended
        output = self._model.filter_for(reading.prompt, self._request.settings)
        text = output.push(self._rules.cleaned(text, reading.part.element)) + output.finish()
        return to_markdown(text) if "<|det|>" in text else text  # boxes inside a part are not the page's

    def _say(self, text: str, *, last: bool = False) -> None:
        if text or (last and self._logprobs):
            self._events.append(TextDelta(text, self._tokens, tuple(self._logprobs)))
            self._tokens, self._logprobs = 0, []

    def _finish(self, detail: FinishDetail | None = None, error: str | None = None) -> None:
        ends = [one.finished for one in self._readings if one.finished is not None]
        asked = [one for one in self._readings if one.prompt is not None]
        late = self._found is None or self._begun < len(self._readings) or any(end.detail == "deadline" for end in ends)
        if detail is None and (late or self._cancelled):
            detail = "cancelled" if self._cancelled else "deadline"
        if detail is None and asked and all(one.error for one in asked):
            detail, error = "error", f"every part of the page failed: {asked[0].error}"
        detail = detail or "eos"
        now = time.monotonic()
        timings = replace(
            timings_of(ends),
            queued=ends[0].timings.queued if ends else now - self._started,
            first_token=self._first_token or 0.0,
            layout=self._found.seconds if self._found else 0.0,
            blocks=now - self._found_at if self._found else 0.0,
        )
        self._over, self._image, self._model = True, None, None
        self._events.append(
            Finished(
                REASONS[detail], detail, usage_of(ends), timings, error, confidence_of(ends), tuple(self._blocks())
            )
        )

    def _blocks(self) -> list[Block]:
        """The page's blocks, each with what went wrong in it."""
        marks = [mark for one in self._readings for mark in [self._mark(one)] * len(one.part.regions)]
        return [
            replace(block, detail=detail, error=error)
            for block, (detail, error) in zip(self._page.blocks, marks, strict=True)
        ]

    def _mark(self, reading: PartReading) -> tuple[str, str]:
        """How a part ended unless it was read whole, and why it could not be read."""
        if reading.prompt is None:
            return "", ""
        if reading.error is not None:
            return "error", reading.error
        if reading.finished is None:
            return ("cancelled" if self._cancelled else "deadline"), ""
        return ("" if reading.finished.detail in _WHOLE else reading.finished.detail), ""

    def _wait(self, seconds: float) -> None:
        if self._found is None:
            wait_for([self._future], seconds)
        elif self._current < self._begun:
            self._readings[self._current].poll(seconds)
        else:  # nothing is in flight: the queue was full
            time.sleep(seconds)

    @property
    def _seconds_left(self) -> float:
        """Seconds until the deadline."""
        deadline = self._request.settings.deadline_s
        return float("inf") if deadline is None else deadline - (time.monotonic() - self._started)

    @property
    def _late(self) -> bool:
        return self._seconds_left <= 0
