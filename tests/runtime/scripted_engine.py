"""The engine with a scripted decoder: no ONNX, every call seen and, where a test wants it, held until let go.

The decoder's next token depends on every token in the row's cache, so a row that was moved, cut or mixed up gives other
tokens than the plain loop in ``expected_tokens``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np

from models.family import Feeds, PreparedImage
from models.settings import InferenceSettings
from runtime.candidates import HostScores
from runtime.requests import Finished, TextDelta
from runtime.sequence import Sequence, Vocabulary
from runtime.stop import Stop
from tools.checkpoints import small_tokenizer

TOKENIZER = small_tokenizer()
VOCABULARY = 280
EOS = 1
IMAGE = TOKENIZER.token_to_id("<image>")
LETTERS = [TOKENIZER.token_to_id(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
WORDS = Vocabulary(TOKENIZER, frozenset({EOS}), IMAGE, np.arange(TOKENIZER.get_vocab_size(), VOCABULARY))
PATIENCE = 30.0  # seconds until a test that hangs fails


def letter(cache: list[int]) -> int:
    """The default script: a letter that depends on everything in the cache."""
    return LETTERS[(7 * sum(i * token for i, token in enumerate(cache, 1)) + len(cache)) % 26]


def scripted(answers: dict[int, str]) -> Callable[[list[int]], int]:
    """Says an answer, then ends: ``answers`` by the last token of the prompt, which nothing else contains."""
    tokens = {key: [*TOKENIZER.encode(text).ids, EOS] for key, text in answers.items()}

    def script(cache: list[int]) -> int:
        at = next(i for i, token in enumerate(cache) if token in tokens)
        return tokens[cache[at]][len(cache) - at - 1]

    return script


class FakeModel:
    """Encoder and decoder in one. ``script`` gives the token that follows a row's cache."""

    def __init__(self, script: Callable[[list[int]], int] = letter) -> None:
        self.script = script
        self.cache: dict[int, list[int]] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.fail: Callable[[tuple[Any, ...]], None] = lambda call: None
        self._changed = threading.Condition()
        self._allowed = 1 << 30

    # What the tests do with it.

    def hold(self, allowed: int = 0) -> None:
        """Hold every call after the next ``allowed``."""
        with self._changed:
            self._allowed = len(self.calls) + allowed

    def let_go(self, calls: int = 1 << 30) -> None:
        with self._changed:
            self._allowed += calls
            self._changed.notify_all()

    def wait_for(self, calls: int) -> None:
        """Until so many calls were begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.calls) >= calls, PATIENCE)

    def step_to(self, calls: int) -> None:
        """Let held calls go until so many were begun, the last of them held."""
        with self._changed:
            self._allowed = calls - 1
            self._changed.notify_all()
        self.wait_for(calls)

    def kinds(self) -> list[str]:
        return [call[0] for call in self.calls]

    def _begin(self, *call: Any) -> None:
        with self._changed:
            self.calls.append(call)
            number = len(self.calls)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._allowed >= number, PATIENCE)
        self.fail(call)

    # Encoder and decoder, as the engine sees them.

    capacity = 1 << 30
    batch = 1

    def begin(self) -> None:
        pass

    def encode_all(self, passes: list[Feeds]) -> list[Feeds]:
        raise AssertionError("a device that takes one pass at a time was given several")

    def make_room(self, length: int, rows: int) -> None:
        pass

    def encode(self, feeds: Feeds, stop: Stop) -> Feeds:
        self._begin("encode", int(feeds["pixels"][0]))
        return {"features": feeds["pixels"]}

    def embed(self, token_ids: list[int]) -> np.ndarray:
        return np.array(token_ids, np.float64)[:, None]

    def prefill_chunk(
        self, row: int, start: int, embeddings: np.ndarray, positions: np.ndarray, stop: Stop, window: int | None = None
    ) -> np.ndarray:
        self._begin("prefill", row, len(embeddings))
        assert start == 0 or len(self.cache[row]) >= start, "the row has lost the beginning of its prompt"
        self.cache[row] = [*self.cache.get(row, [])[:start], *(int(value) for value in embeddings[:, 0])]
        return self._logits(row)

    def prefill_together(
        self, row: int, prompts: list[np.ndarray], positions: list[np.ndarray], windows: list[int | None]
    ) -> None:
        self._begin("together", row, *map(len, prompts))
        longest = max(map(len, prompts))
        for index, prompt in enumerate(prompts):
            padding = [0] * (longest - len(prompt))
            self.cache[row + index] = [*(int(value) for value in prompt[:, 0]), *padding]

    def step(self, token_ids: list[int], lengths: list[int], positions: list[int]) -> np.ndarray:
        self._begin("step", len(token_ids))
        for row, (token, length) in enumerate(zip(token_ids, lengths, strict=True)):
            assert len(self.cache.setdefault(row, [])) >= length, "a row is shorter than the engine believes"
            self.cache[row] = [*self.cache[row][:length], token]
        return np.stack([self._logits(row) for row in range(len(token_ids))])

    def score(self, token_ids: list[int], lengths: list[int], positions: list[int]) -> HostScores:
        return HostScores(self.step(token_ids, lengths, positions))

    def move(self, source: int, target: int, length: int) -> None:
        self._begin("move", source, target, length)
        self.cache[target] = self.cache.get(source, [])[:length]
        self.cache[source] = []

    def _logits(self, row: int) -> np.ndarray:
        logits = np.zeros(VOCABULARY, np.float32)
        logits[self.script(self.cache[row])] = 1.0
        return logits


class SlowEncoder(FakeModel):
    """Holds every vision pass until it is let go or stopped, and nothing else."""

    def __init__(self, script: Callable[[list[int]], int] = letter) -> None:
        super().__init__(script)
        self._passes: SimpleQueue[int] = SimpleQueue()
        self._let = threading.Semaphore(0)

    def wait_for_pass(self, first: int) -> None:
        assert self._passes.get(timeout=PATIENCE) == first

    def let_pass(self) -> None:
        self._let.release()

    def encode(self, feeds: Feeds, stop: Stop) -> Feeds:
        outputs = super().encode(feeds, stop)
        self._passes.put(int(feeds["pixels"][0]))
        waited = time.monotonic() + PATIENCE
        while not self._let.acquire(timeout=0.01):
            if stop.requested:
                raise RuntimeError("Exiting due to terminate flag being set to true")
            assert time.monotonic() < waited, "nobody let the pass go"
        return outputs


def expected_tokens(prompt: list[int], count: int) -> list[int]:
    cache = list(prompt)
    for _ in range(count):
        cache.append(letter(cache))
    return cache[len(prompt) :]


def sequence(
    prompt: list[int], *, images: list[PreparedImage] | None = None, max_length: int = 10_000, client: str = "",
    patient: bool = False, **changes: Any,
) -> Sequence:  # fmt: skip
    changes = {"no_repeat_ngram_size": 0, "stop_on_loop": False, "max_new_tokens": 5, **changes}
    return Sequence(
        prompt, images or [], InferenceSettings(**changes), WORDS, max_length, client=client, patient=patient
    )


def image(first: int, passes: int = 1) -> PreparedImage:
    """An image of one token for each pass, whose features are ``first``, ``first`` + 1, ..."""
    make = lambda i: lambda: {"pixels": np.array([first + i], np.float64)}
    return PreparedImage(
        [make(i) for i in range(passes)], passes, lambda outputs: np.stack([out["features"] for out in outputs])
    )


def outcome(sequence: Sequence) -> tuple[str, Finished]:
    """The joined text and the last event."""
    text = ""
    while not isinstance(event := sequence.next_event(PATIENCE), Finished):
        assert isinstance(event, TextDelta), "no event came"
        text += event.text
    assert sequence.next_event(0) is None, "an event came after the last one"
    return text, event
