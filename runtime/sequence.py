"""One request from its prompt to its last event; the only place that keeps a request's state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue

import numpy as np
from tokenizers import Tokenizer

from models.blocks import Block
from models.family import Feeds, OutputFilter, Positions, PreparedImage, Verbatim, counted
from models.settings import InferenceSettings

from .candidates import Chooser
from .confidence import Distribution, Tally, TokenLogprob, described
from .features import OrderedRows, Outputs, Rows, assembled, merge
from .kv_cache import kept
from .logits import LogitFilter
from .requests import REASONS, FinishDetail, Finished, Stage, TextDelta, Timings, Usage
from .stop import Stop
from .text import LoopDetector, TextStream

Blocks = Callable[[str], tuple[Block, ...]]
Start = Callable[[Callable[[], Feeds]], Future[Feeds]]  # lets a thread of the engine make a pass's inputs


@dataclass
class _Clock:
    """Moments and durations of one request, seconds."""

    submitted: float = field(default_factory=time.monotonic)
    prepare: float = 0.0
    taken_up: float | None = None
    vision: float = 0.0
    prefill: float = 0.0
    first_token: float | None = None

    def take_up(self) -> None:
        """The engine begins to work on it."""
        if self.taken_up is None:
            self.taken_up = time.monotonic()

    def timings(self) -> Timings:
        now = time.monotonic()
        return Timings(
            queued=(self.taken_up or now) - self.submitted,
            prepare=self.prepare,
            vision=self.vision,
            prefill=self.prefill,
            decode=now - self.first_token if self.first_token else 0.0,
            first_token=self.first_token - self.submitted if self.first_token else 0.0,
        )


@dataclass(frozen=True)
class Vocabulary:
    """Facts about a model's tokens that its sequences need.

    forbidden : ids of vocabulary rows without a token, shape [n].
    """

    tokenizer: Tokenizer
    eos: frozenset[int]
    image: int
    forbidden: np.ndarray


class Sequence:
    """The engine's side of one request; its caller holds it as a ``Generation``.

    Stages: images (``next_pass`` / ``add_pass``), then ``prompt`` for the prefill, then ``accept`` for each row of
    logits, until ``finished``. Any thread may end it at any moment.
    """

    def __init__(
        self, prompt_ids: list[int], images: SequenceOf[PreparedImage], settings: InferenceSettings,
        vocabulary: Vocabulary, max_length: int, prepare_seconds: float = 0.0, output: OutputFilter | None = None,
        positions: Positions | None = None, client: str = "", alternatives: int | None = None,
        window: int | None = None, blocks: Blocks | None = None, grammar: LogitFilter | None = None,
        patient: bool = False,
    ) -> None:  # fmt: skip
        """window : how many of its own tokens the answer attends to, the newest among them; None: all.

        blocks : finds the page's blocks in the answer as the model wrote it. grammar : what the answer is held to.
        """
        self.prompt_ids = prompt_ids
        self._positions = positions or counted(len(prompt_ids))
        self.settings = settings
        self.tokens: list[int] = []  # generated so far, without the end token
        self.finished = False
        self.client = client
        self.patient = patient  # see ``scheduler.Scheduled``
        self.window = window
        self.arrival = 0  # see ``scheduler.Scheduled``
        self.prefilled = 0  # tokens of the prompt that are in the KV cache
        self._owed = 0  # 1 where a step feeds the prompt's last token, like the answer's
        self.joins = self._ends_in_a_word(vocabulary.image)  # see ``scheduler.Scheduled``
        self.stop = Stop()  # ends runs that serve this request alone
        self.on_cancel: Callable[[], None] = lambda: None  # set by the engine
        self.clock = _Clock(prepare=prepare_seconds)
        self._vocabulary = vocabulary
        self._max_length = max_length
        self._lock = threading.RLock()  # guards the fields below and ``finished``
        self._images = list(images)
        self._passes = [make for image in images for make in image.passes]
        self._unencoded = len(self._passes)  # passes whose outputs are not there yet
        self._ahead: Future[Feeds] | None = None  # the next pass's inputs, made while the pass before is encoded
        self._outputs: list[Outputs] = []  # outputs of the current image's passes
        self._features: list[np.ndarray | OrderedRows] = []  # features of finished images, [tokens, hidden] each
        self._prompt: np.ndarray | Rows | None = None  # embeddings until the prompt is fed, [prompt tokens, hidden]
        self._image_tokens = sum(image.token_count for image in images)
        self.chooser = Chooser(settings, vocabulary.forbidden)
        self.text_stream = TextStream(vocabulary.tokenizer, settings.stop)
        self._output = output or Verbatim()
        self._blocks = blocks
        self._written: list[str] = []  # the model's own text, where blocks are to be found in the text
        decode = partial(vocabulary.tokenizer.decode, skip_special_tokens=False)
        self._loop = LoopDetector(decode=decode) if settings.stop_on_loop else None
        self._unannounced = 0  # number of tokens whose text is still held back
        self._alternatives = alternatives
        self._logprobs: list[TokenLogprob] = []  # log-probabilities of held-back tokens
        self._tally = Tally()
        self._events: SimpleQueue[TextDelta | Finished] = SimpleQueue()
        self._cancelled = False
        for token in prompt_ids:
            self.chooser.observe(token)
        if grammar is not None:
            self.chooser.follow(grammar)

    # What the caller sees (runtime.requests.Generation).

    def next_event(self, timeout: float | None = None) -> TextDelta | Finished | None:
        """See ``Generation``."""
        try:
            return self._events.get(timeout=timeout)
        except Empty:
            return None

    @property
    def stage(self) -> Stage:
        """See ``Generation``."""
        if self.clock.taken_up is None:
            return "queued"
        return "reading" if self.encoded else "seeing"

    def cancel(self) -> None:
        """See ``Generation``."""
        self._cancelled = True
        self.on_cancel()

    # Called by the engine.

    @property
    def passes_left(self) -> int:
        """See ``scheduler.Scheduled``."""
        return len(self._passes) + (self._ahead is not None)

    @property
    def encoded(self) -> bool:
        """See ``scheduler.Scheduled``."""
        return not self._unencoded

    @property
    def prompt_left(self) -> int:
        """See ``scheduler.Scheduled``."""
        return len(self.prompt_ids) - self.prefilled - self._owed

    @property
    def length(self) -> int:
        """Tokens in the KV cache: without the newest token, which is not fed yet, and without evicted ones."""
        answered = max(0, len(self.tokens) - 1)
        return self.prefilled + kept(answered, self.window)

    @property
    def newest(self) -> int:
        """The newest token; before the first one, the prompt's last."""
        return self.tokens[-1] if self.tokens else self.prompt_ids[-1]

    @property
    def prompt_positions(self) -> np.ndarray:
        """Positions of the prompt's tokens, [axes, tokens]."""
        return self._positions.axes

    @property
    def position(self) -> int:
        """Position of the newest token: images can have fewer positions than tokens."""
        return self._positions.next + len(self.tokens) - 1

    @property
    def deadline(self) -> float | None:
        """When the request ends at the latest, in seconds of ``time.monotonic``; None: never."""
        seconds = self.settings.deadline_s
        return None if seconds is None else self.clock.submitted + seconds

    def overdue(self) -> FinishDetail | None:
        """Why the request should end before its next step; None: it goes on."""
        if self._cancelled:
            return "cancelled"
        if self.deadline is not None and time.monotonic() > self.deadline:
            return "deadline"
        return None

    def next_pass(self) -> Feeds | None:
        """The next vision pass's input arrays; None when the request has ended."""
        with self._lock:
            if self.finished:
                return None
            ahead, self._ahead = self._ahead, None
            make = self._passes.pop(0) if ahead is None else ahead.result
        return make()

    def make_ahead(self, start: Start) -> None:
        """Start to make the next pass's inputs."""
        with self._lock:
            if self._ahead is None and self._passes:
                self._ahead = start(self._passes.pop(0))

    @property
    def is_ahead(self) -> bool:
        """Whether the next pass's inputs are made or being made."""
        return self._ahead is not None

    def add_pass(self, outputs: Outputs) -> None:
        """Take the outputs of the pass that ``next_pass`` began, as arrays or as values on a device."""
        with self._lock:
            if self.finished:
                return
            self._outputs.append(outputs)
            image = self._images[0]
            if len(self._outputs) == len(image.passes):
                self._features.append(assembled(image, self._outputs))
                self._outputs = []
                self._images.pop(0)
            self._unencoded -= 1  # last: another thread may begin with the prompt now

    def prompt(self, embed: Callable[[list[int]], np.ndarray | Rows]) -> np.ndarray | Rows:
        """The prompt's embeddings with image features in the image slots, [prompt tokens, hidden]; made once.

        embed : token ids -> [prompt tokens, hidden].
        """
        if self._prompt is None:
            self._prompt = self._merged(embed(self.prompt_ids))
        return self._prompt

    def _merged(self, token_embeddings: np.ndarray | Rows) -> np.ndarray | Rows:
        if not self._features:
            return token_embeddings
        slots = np.array(self.prompt_ids) == self._vocabulary.image
        merged = merge(token_embeddings, slots, self._features)
        self._features = []  # only now: a prompt that fails in a batch is tried again alone
        return merged

    def add_chunk(self, tokens: int) -> None:
        """Note that ``tokens`` more tokens of the prompt are in the KV cache."""
        self.prefilled += tokens
        if not self.prompt_left:
            self._prompt = None

    def add_all_but_last(self) -> None:
        """Note that the prompt is in the KV cache up to its last token, which the next step feeds."""
        self._owed = 1
        self.add_chunk(self.prompt_left)

    def _ends_in_a_word(self, image: int) -> bool:
        """Whether a step can feed the prompt's last token: no image slot, and the same position in every axis."""
        if len(self.prompt_ids) < 2 or self.prompt_ids[-1] == image:
            return False
        return bool((self._positions.axes[:, -1] == self._positions.next - 1).all())

    def accept(self, logits: np.ndarray) -> None:
        """Choose the next token from logits [vocabulary], which are changed; send the text that it completes."""
        with self._lock:
            if not self.finished:
                distribution = Distribution.of_row(logits)
                self._add(self.chooser.choose(logits), distribution)

    def accept_token(self, token: int, distribution: Distribution) -> None:
        """Take the next token, chosen by ``chooser``, and send the text that the token completes."""
        with self._lock:
            if not self.finished:
                self._add(token, distribution)

    def _add(self, token: int, distribution: Distribution) -> None:
        self.prefilled, self._owed = self.prefilled + self._owed, 0
        if self.clock.first_token is None:
            self.clock.first_token = time.monotonic()
        if token in self._vocabulary.eos:
            self._tally.end(distribution.log_probability(token))
            self.finish("eos")
            return
        self._tally.add(distribution.log_probability(token))
        if self._alternatives is not None:
            self._logprobs.append(described(self._vocabulary.tokenizer, token, distribution, self._alternatives))
        self.tokens.append(token)
        self.chooser.observe(token)
        self._unannounced += 1
        self._send(self._presented(self.text_stream.add(token)))
        if self.text_stream.stopped:
            self.finish("stop_string")
        elif self._loop is not None and self._loop.add(token):
            self.finish("loop")
        elif len(self.tokens) >= self.settings.max_new_tokens:
            self.finish("max_tokens")
        elif len(self.prompt_ids) + len(self.tokens) > self._max_length:
            self.finish("context")

    def finish(self, detail: FinishDetail, error: str | None = None) -> None:
        """Send the last event, and end runs that serve this request alone. Idempotent, from any thread."""
        with self._lock:
            if self.finished:
                return
            self.finished = True
            blocks: tuple[Block, ...] = ()
            try:
                self._send(self._presented(self.text_stream.finish()) + self._output.finish())
                blocks = self._blocks("".join(self._written)) if self._blocks else ()
            except Exception as failure:  # the caller must hear of the end even when detokenizer or filter fail
                detail, error = "error", error or f"{type(failure).__name__}: {failure}"
            if self._logprobs:  # tokens of trailing blanks and of a stop string
                self._send("", always=True)
            usage = Usage(len(self.prompt_ids), len(self.tokens), self._image_tokens)
            timings, confidence = self.clock.timings(), self._tally.confidence()
            self._events.put(Finished(REASONS[detail], detail, usage, timings, error, confidence, blocks))
            self._images, self._passes, self._outputs, self._features = [], [], [], []
            self._ahead = self._prompt = None
        self.on_cancel = lambda: None  # a caller that keeps this sequence keeps no engine alive
        self.stop.request()

    def _presented(self, written: str) -> str:
        if self._blocks and written:
            self._written.append(written)
        return self._output.push(written)

    def _send(self, text: str, *, always: bool = False) -> None:
        if text or always:
            self._events.put(TextDelta(text, self._unannounced, tuple(self._logprobs)))
            self._unannounced = 0
            self._logprobs.clear()
