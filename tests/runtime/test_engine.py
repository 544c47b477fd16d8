"""The engine with a scripted decoder: no ONNX, every call seen and, where a test wants it, held until let go.

The decoder's next token depends on every token in the row's cache, so a row that was moved, cut or mixed up gives other
tokens than the plain loop in ``expected_tokens``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.blocks import Block
from models.family import Feeds, PreparedImage
from models.settings import InferenceSettings
from runtime.candidates import HostScores
from runtime.engine import Engine
from runtime.errors import EngineClosed, QueueFull
from runtime.requests import Finished, TextDelta
from runtime.sequence import Sequence, Vocabulary
from runtime.stop import Stop
from tests.waiting import until
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


@pytest.fixture
def start() -> Iterator[Callable[..., Engine]]:
    engines: list[tuple[Engine, FakeModel]] = []

    def make(model: FakeModel, slots: int = 4, max_queue: int = 64, **options: int) -> Engine:
        engines.append((Engine(model, model, slots=slots, max_queue=max_queue, **options), model))
        return engines[-1][0]

    yield make
    for engine, model in engines:
        model.let_go()
        engine.close()


def test_a_request_alone_gets_the_plain_loops_tokens_text_and_counts(start) -> None:
    engine = start(FakeModel())
    request = sequence([0, 5, 9], max_new_tokens=7)
    engine.submit(request)
    text, finished = outcome(request)
    assert request.tokens == expected_tokens([0, 5, 9], 7)
    assert text == TOKENIZER.decode(request.tokens)
    assert (finished.reason, finished.detail, finished.error) == ("length", "max_tokens", None)
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens, finished.usage.image_tokens) == (3, 7, 0)


def test_patient_requests_are_decoded_together_and_say_what_each_says_alone(start) -> None:
    model = FakeModel()
    engine = start(model, slots=3)
    model.hold()
    requests = [
        sequence([0, 3 + i, IMAGE, IMAGE], images=[image(1000 * i, 2)], max_new_tokens=6, patient=True)
        for i in range(6)
    ]  # fmt: skip
    for request in requests:
        engine.submit(request)
    model.let_go()
    for i, request in enumerate(requests):
        outcome(request)
        assert request.tokens == expected_tokens([0, 3 + i, 1000 * i, 1000 * i + 1], 6)
    # A prompt gives the first token, a step the next five: of three rows each.
    assert [call for call in model.calls if call[0] == "step"] == [("step", 3)] * 10


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_patient_requests_do_not_wait_for_one_that_has_ended(start, end) -> None:
    model = SlowEncoder()
    if end == "failed":
        model.encode = lambda feeds, stop: (SlowEncoder.encode(model, feeds, stop), 1 / 0)[0]  # type: ignore[method-assign]
    engine = start(model)
    requests = [
        sequence([0, 3], patient=True),
        sequence([0, IMAGE], images=[image(1000)], patient=True),
    ]
    for request in requests:
        engine.submit(request)
    model.wait_for_pass(1000)
    assert "step" not in model.kinds()
    requests[1].cancel() if end == "cancelled" else model.let_pass()
    assert outcome(requests[0])[1].detail == "max_tokens"
    assert outcome(requests[1])[1].detail == ("cancelled" if end == "cancelled" else "error")


def test_image_features_take_the_places_of_the_slots_in_order(start) -> None:
    model = FakeModel()
    engine = start(model)
    request = sequence([0, IMAGE, IMAGE, 5, IMAGE], images=[image(1000, 2), image(2000)])
    engine.submit(request)
    _, finished = outcome(request)
    assert model.calls[:4] == [("encode", 1000), ("encode", 1001), ("encode", 2000), ("prefill", 0, 5)]
    assert request.tokens == expected_tokens([0, 1000, 1001, 5, 2000], 5)
    assert (finished.usage.prompt_tokens, finished.usage.image_tokens) == (5, 3)


def test_one_view_is_made_while_the_one_before_is_encoded(start) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model)
    made = [threading.Event() for _ in range(3)]

    def make(number: int) -> Feeds:
        made[number].set()
        return {"pixels": np.array([1000 + number], np.float64)}

    three = PreparedImage([partial(make, number) for number in range(3)], 3, image(0, 3).assemble)
    request = sequence([0, IMAGE, IMAGE, IMAGE, 5], images=[three])
    engine.submit(request)
    model.wait_for(1)  # the first view is held in the encoder
    assert made[1].wait(PATIENCE)
    assert not made[2].is_set(), "views further ahead would only cost memory"
    model.let_go()
    outcome(request)
    assert request.tokens == expected_tokens([0, 1000, 1001, 1002, 5], 5)


def test_a_request_joins_while_others_run(start) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model)
    first, second = sequence([0, 3], max_new_tokens=9), sequence([0, 4, 4], max_new_tokens=9)
    engine.submit(first)
    model.step_to(4)  # its prefill and two steps are done, the third is held
    engine.submit(second)
    model.let_go()
    outcome(first)
    outcome(second)
    assert model.calls[:6] == [
        ("prefill", 0, 2), ("step", 1), ("step", 1), ("step", 1), ("prefill", 1, 3), ("step", 2)
    ]  # fmt: skip
    assert first.tokens == expected_tokens([0, 3], 9)
    assert second.tokens == expected_tokens([0, 4, 4], 9)


def test_others_decode_during_each_vision_pass_of_a_newcomer(start) -> None:
    model = SlowEncoder()
    engine = start(model)
    first, second = sequence([0, 3], max_new_tokens=10_000), sequence([0, *[IMAGE] * 3], images=[image(1000, 3)])
    engine.submit(first)
    model.wait_for(2)
    engine.submit(second)
    for number in range(3):
        model.wait_for_pass(1000 + number)
        model.wait_for(len(model.calls) + 5)  # steps, as nothing else can be begun while the pass is held
        model.let_pass()
    outcome(second)
    first.cancel()
    assert second.tokens == expected_tokens([0, 1000, 1001, 1002], 5)
    kinds = model.kinds()
    passes = [at for at, kind in enumerate(kinds) if kind == "encode"]
    assert [kinds[at + 1 : at + 6] for at in passes] == [["step"] * 5] * 3


def test_the_last_rows_cache_moves_into_the_gap_with_its_own_length(start) -> None:
    model = FakeModel()
    engine = start(model)
    model.hold()
    requests = [sequence([0] + [3 + i] * (i + 1), max_new_tokens=n) for i, n in enumerate((4, 20, 20))]
    for request in requests:
        engine.submit(request)
    model.let_go()
    for request in requests:
        outcome(request)
    moves = [call for call in model.calls if call[0] == "move"]
    assert moves[0][1:3] == (2, 0)
    for i, request in enumerate(requests):
        assert request.tokens == expected_tokens([0] + [3 + i] * (i + 1), (4, 20, 20)[i])


@given(
    plans=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(0, 40), st.none() | st.integers(0, 10)),
        min_size=1, max_size=9,
    ),
    slots=st.integers(1, 4),
    chunk=st.sampled_from([1, 2, 3, 100]),
    together=st.sampled_from([0, 9, 100]),
    views=st.lists(st.integers(0, 3), min_size=9, max_size=9),
    patient=st.sampled_from([[], [0, 1, 3, 4, 6], range(9)]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_every_row_says_what_it_says_alone_whoever_comes_and_goes(
    plans, slots, chunk, together, views, patient
) -> None:
    """plans: prompt length, budget, after which call it is submitted, and after how many more it is cancelled."""
    model = FakeModel()
    engine = Engine(model, model, slots=slots, max_queue=64, chunk=chunk, together=together)
    requests = [
        sequence(
            [0] + [3 + i] * plan[0] + [IMAGE] * views[i] + [5] * (i % 2), max_new_tokens=plan[1], client=str(i % 2),
            images=[image(1000 * i, views[i])] if views[i] else [], patient=i in patient,
        )
        for i, plan in enumerate(plans)
    ]  # fmt: skip
    pending = list(zip(requests, plans, strict=True))
    cancelling: list[tuple[int, Sequence]] = []

    def submit_next(calls: int) -> None:
        request, (_, _, _, cancel) = pending.pop(0)
        if cancel is not None:
            cancelling.append((calls + cancel, request))
        engine.submit(request)

    def between_calls(_: tuple[Any, ...]) -> None:
        calls = len(model.calls)
        for at, request in cancelling:
            if calls >= at:
                request.cancel()
        if pending and calls >= pending[0][1][2]:
            submit_next(calls)

    while pending:  # when the engine has run dry before the next one's time
        model.fail = lambda call: None
        submit_next(len(model.calls))
        model.fail = between_calls
        assert engine.drain(PATIENCE)
    try:
        for number, (request, (length, budget, _, cancel)) in enumerate(zip(requests, plans, strict=True)):
            text, finished = outcome(request)
            features = [1000 * number + view for view in range(views[number])]
            expected = expected_tokens([0] + [3 + number] * length + features + [5] * (number % 2), budget)
            assert request.tokens == expected[: len(request.tokens)]
            assert text == TOKENIZER.decode(request.tokens)
            assert finished.usage.completion_tokens == len(request.tokens)
            if finished.detail == "max_tokens":
                assert request.tokens == expected
            else:
                assert finished.detail == "cancelled"
                assert cancel is not None
        assert all(call[1] <= slots for call in model.calls if call[0] == "step")
    finally:
        engine.close()


def test_a_queued_request_is_cancelled_within_one_step_of_those_that_run(start) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model, slots=1)
    running, queued = sequence([0, 3], max_new_tokens=50), sequence([0, 4])
    engine.submit(running)
    model.step_to(3)
    engine.submit(queued)
    assert engine.queue_depth == 1
    queued.cancel()
    model.let_go(1)
    _, finished = outcome(queued)
    assert (finished.reason, finished.detail, finished.usage.completion_tokens) == ("cancelled", "cancelled", 0)
    assert len(model.calls) <= 4
    model.let_go()
    outcome(running)
    assert running.tokens == expected_tokens([0, 3], 50)


def test_a_request_is_cancelled_between_two_vision_passes(start) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model)
    request = sequence([0, *[IMAGE] * 3], images=[image(1000, 3)])
    engine.submit(request)
    model.wait_for(1)
    request.cancel()
    model.let_go()
    assert outcome(request)[1].detail == "cancelled"
    assert model.calls == [("encode", 1000)]


def test_a_request_is_cancelled_after_its_prefill_and_while_it_decodes(start) -> None:
    model = FakeModel()
    engine = start(model)
    for calls in (1, 2, 5):
        model.calls.clear()
        model.hold()
        request = sequence([0, 3], max_new_tokens=50)
        engine.submit(request)
        model.step_to(calls)
        request.cancel()
        model.let_go()
        text, finished = outcome(request)
        assert finished.detail == "cancelled"
        assert len(model.calls) <= calls + 1
        assert text == TOKENIZER.decode(expected_tokens([0, 3], finished.usage.completion_tokens))
        assert engine.drain(PATIENCE)


@pytest.mark.parametrize("how", ["cancel", "deadline", "close"])
def test_a_pass_that_runs_is_ended_and_the_others_notice_nothing(start, how) -> None:
    model = SlowEncoder()
    engine = start(model)
    beside = sequence([0, 3], max_new_tokens=100)
    request = sequence([0, IMAGE], images=[image(1000)], deadline_s=0.3 if how == "deadline" else None)
    engine.submit(request)
    engine.submit(beside)
    model.wait_for_pass(1000)  # which nobody lets go
    assert how == "close" or outcome(beside)[1].detail == "max_tokens"
    if how == "cancel":
        request.cancel()
    if how == "close":
        engine.close()
    assert outcome(request)[1].detail == ("deadline" if how == "deadline" else "cancelled")
    assert engine.drain(PATIENCE)
    if how != "close":
        engine.submit(later := sequence([0, 4]))
        assert outcome(later)[1].detail == "max_tokens"
    assert "prefill" in model.kinds() or how == "close"
    assert all(call[:2] != ("prefill", 1) for call in model.calls)


def test_a_chunk_that_runs_is_ended(start) -> None:
    class SlowPrefill(FakeModel):
        def prefill_chunk(
            self,
            row: int,
            start: int,
            embeddings: np.ndarray,
            positions: np.ndarray,
            stop: Stop,
            window: int | None = None,
        ) -> np.ndarray:
            logits = super().prefill_chunk(row, start, embeddings, positions, stop)
            waited = time.monotonic() + PATIENCE
            while start and not stop.requested:
                time.sleep(0.01)
                assert time.monotonic() < waited, "nobody ended the chunk"
            if stop.requested:
                raise RuntimeError("Exiting due to terminate flag being set to true")
            return logits

    model = SlowPrefill()
    engine = start(model, chunk=2)
    request = sequence([0, 3, 4, 5, 6])
    engine.submit(request)
    model.wait_for(2)
    request.cancel()
    _, finished = outcome(request)
    assert (finished.detail, finished.error) == ("cancelled", None)
    assert engine.drain(PATIENCE)
    engine.submit(later := sequence([0, 7]))
    assert outcome(later)[1].detail == "max_tokens"
    assert model.calls[:3] == [("prefill", 0, 2), ("prefill", 0, 2), ("prefill", 0, 2)]


def test_a_cancelled_request_leaves_the_queue_while_a_pass_and_a_step_run(start) -> None:
    model = FakeModel()
    model.hold(1)
    engine = start(model, slots=1, max_queue=2)
    engine.submit(sequence([0, 3], max_new_tokens=50))
    model.wait_for(2)  # a step, held
    engine.submit(sequence([0, IMAGE], images=[image(1000)]))
    model.wait_for(3)  # a pass, held
    engine.submit(queued := sequence([0, 4]))
    with pytest.raises(QueueFull):
        engine.submit(sequence([0, 5]))
    queued.cancel()
    assert outcome(queued)[1].detail == "cancelled"
    assert engine.queue_depth == 0
    engine.submit(sequence([0, 5]))
    with pytest.raises(QueueFull):
        engine.submit(sequence([0, 5]))


def test_a_long_prompt_is_fed_in_chunks_between_the_steps_of_others(start) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model, chunk=4)
    first, second = sequence([0, 3], max_new_tokens=30), sequence([0, *[5] * 10])
    engine.submit(first)
    model.step_to(3)
    engine.submit(second)
    model.let_go()
    outcome(first)
    assert model.calls[3:9] == [
        ("prefill", 1, 4), ("step", 1), ("prefill", 1, 4), ("step", 1), ("prefill", 1, 3), ("step", 2)
    ]  # fmt: skip
    assert first.tokens == expected_tokens([0, 3], 30)
    assert second.tokens == expected_tokens([0, *[5] * 10], 5)


def test_a_short_prompt_overtakes_a_long_one_that_is_being_fed(start) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model, chunk=2)
    long, short = sequence([0, *[5] * 19]), sequence([0, 6])
    engine.submit(long)
    model.step_to(3)
    engine.submit(short)
    model.let_go()
    outcome(long)
    # The half-fed row stands before the short one, and is stepped with it.
    assert model.calls[3:6] == [("prefill", 1, 2), ("step", 2), ("prefill", 0, 2)]
    assert short.tokens == expected_tokens([0, 6], 5)
    assert long.tokens == expected_tokens([0, *[5] * 19], 5)


def waiting_prompts(start, model: FakeModel, *prompts: list[int], **options: Any) -> tuple[Engine, list[Sequence]]:
    """Requests that come while a step of another one is held."""
    model.hold(1)
    engine = start(model, slots=8, together=100)
    engine.submit(first := sequence([0, 3], max_new_tokens=50))
    model.wait_for(2)
    requests = [sequence(prompt, **options) for prompt in prompts]
    for request in requests:
        engine.submit(request)
    return engine, [first, *requests]


def test_short_prompts_that_wait_are_fed_in_one_run_and_the_next_step_feeds_their_last_tokens(start) -> None:
    model = FakeModel()
    prompts = [[0, 4, 5, 6], [0, 7, 8], [0, 9, 10, 11, 12]]
    _, (first, *requests) = waiting_prompts(start, model, *prompts)
    model.let_go()
    for request, prompt in zip(requests, prompts, strict=True):
        text, finished = outcome(request)
        assert request.tokens == expected_tokens(prompt, 5)
        assert text == TOKENIZER.decode(request.tokens)
        assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (len(prompt), 5)
        assert finished.timings.prefill > 0
    assert model.calls[:4] == [("prefill", 0, 2), ("step", 1), ("together", 1, 3, 2, 4), ("step", 4)]
    assert outcome(first)[1].usage.completion_tokens == 50
    assert first.tokens == expected_tokens([0, 3], 50)


def test_a_prompt_that_ends_in_an_image_or_is_one_token_is_fed_alone(start) -> None:
    model = FakeModel()
    prompts = [[0, 4], [5], [0, 6]]
    _, (_, *requests) = waiting_prompts(start, model, *prompts)
    model.let_go()
    for request, prompt in zip(requests, prompts, strict=True):
        outcome(request)
        assert request.tokens == expected_tokens(prompt, 5)
    assert "together" not in model.kinds()


def test_a_request_that_ends_while_prompts_are_fed_together_takes_no_other_with_it(start) -> None:
    model = FakeModel()
    prompts = [[0, 4, 5], [0, 6, 7], [0, 8, 9]]
    engine, (first, *requests) = waiting_prompts(start, model, *prompts)
    model.step_to(3)  # all three together, held
    assert model.calls[2] == ("together", 1, 2, 2, 2)
    requests[1].cancel()
    assert outcome(requests[1])[1].detail == "cancelled"  # at once, and not after the run
    model.let_go()
    for number in (0, 2):
        outcome(requests[number])
        assert requests[number].tokens == expected_tokens(prompts[number], 5)
    outcome(first)
    assert engine.drain(PATIENCE)


@pytest.mark.parametrize("stage", ["together", "features"])
def test_prompts_that_fail_together_are_fed_each_alone_and_only_the_faulty_one_fails(start, stage) -> None:
    model = FakeModel()
    engine, (first, *requests) = waiting_prompts(start, model, [0, 4, 5], [0, 6, 7], [0, 8, 9])

    def refuse(call: tuple[Any, ...]) -> None:
        if call[0] == "together" and stage == "together":
            raise RuntimeError("CUDA failure 2: out of memory")

    def damaged(embed: Any) -> np.ndarray:
        raise ValueError("features of another size")

    model.fail = refuse
    if stage == "features":
        requests[1].prompt = damaged  # type: ignore[method-assign]
    model.let_go()
    for number, prompt in ((0, [0, 4, 5]), (1, [0, 6, 7]), (2, [0, 8, 9])):
        _, finished = outcome(requests[number])
        if stage == "features" and number == 1:
            assert "features of another size" in (finished.error or "")
        else:
            assert finished.error is None
            assert requests[number].tokens == expected_tokens(prompt, 5)
    outcome(first)
    assert model.kinds().count("together") == (stage == "together")
    assert engine.drain(PATIENCE)
    assert engine.alive


def test_growth_that_fails_ends_the_rows_that_needed_it_and_no_others(start) -> None:
    class Small(FakeModel):
        capacity = 8
        most = 16

        def make_room(self, length: int, rows: int) -> None:
            if length > self.most:
                raise MemoryError("no room in the cache")
            self.capacity = max(self.capacity, 16) if length > 8 else self.capacity

    model = Small()
    engine = start(model)
    # The second fits into what can be had, the third needs more than that for its prompt, the first for its answer.
    requests = [sequence([0, 3], max_new_tokens=30), sequence([0, 4], max_new_tokens=14), sequence([0, *[5] * 20])]
    model.hold()
    for request in requests:
        engine.submit(request)
    model.let_go()
    ends = [outcome(request)[1] for request in requests]
    assert [end.detail for end in ends] == ["error", "max_tokens", "error"]
    assert ends[0].error == ends[2].error == "MemoryError: no room in the cache"
    assert requests[0].tokens == expected_tokens([0, 3], len(requests[0].tokens))
    assert len(requests[0].tokens) == 16 - 2 + 1  # the last token needs no place
    assert requests[1].tokens == expected_tokens([0, 4], 14)
    assert engine.alive


def test_an_engine_is_alive_until_it_is_closed_or_has_failed(start) -> None:
    model = FakeModel()
    engine = start(model)
    assert engine.alive

    def fail(call: tuple[Any, ...]) -> None:
        if call[0] == "move":
            raise RuntimeError("no memory")

    model.hold()
    model.fail = fail
    requests = [sequence([0, 3 + i], max_new_tokens=3 + i) for i in range(2)]
    for request in requests:
        engine.submit(request)
    model.let_go()
    assert [outcome(request)[1].detail for request in requests] == ["max_tokens", "error"]
    assert engine.drain(PATIENCE)
    assert not engine.alive
    closed = start(FakeModel())
    closed.close()
    assert not closed.alive


def test_cancelling_twice_and_after_the_end_changes_nothing(start) -> None:
    engine = start(FakeModel())
    request = sequence([0, 3])
    engine.submit(request)
    assert outcome(request)[1].detail == "max_tokens"
    request.cancel()
    request.cancel()
    assert request.next_event(0) is None


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_a_deadline_ends_a_request_with_the_text_so_far(start, calls) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model)
    request = sequence([0, IMAGE], images=[image(1000)], max_new_tokens=50, deadline_s=1000)
    engine.submit(request)
    model.step_to(calls)
    request.clock.submitted -= 1001
    model.let_go()
    text, finished = outcome(request)
    assert (finished.reason, finished.detail) == ("length", "deadline")
    assert text == TOKENIZER.decode(expected_tokens([0, 1000], finished.usage.completion_tokens))
    assert len(model.calls) <= calls + 1


def test_a_deadline_counts_while_a_request_is_queued(start) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model, slots=1)
    running, queued = sequence([0, 3]), sequence([0, 4], deadline_s=0)
    engine.submit(running)
    model.wait_for(1)
    engine.submit(queued)
    model.let_go(2)  # the prefill and the first step of the other one
    assert outcome(queued)[1].detail == "deadline"


@pytest.mark.parametrize(("slots", "max_queue"), [(1, 0), (1, 2), (3, 0), (2, 3)])
def test_as_many_requests_as_slots_and_queue_are_taken_and_the_next_is_refused(start, slots, max_queue) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model, slots, max_queue)
    requests = [sequence([0, 3 + i]) for i in range(slots + max_queue)]
    for request in requests:
        engine.submit(request)
    with pytest.raises(QueueFull) as caught:
        engine.submit(sequence([0, 4]))
    assert caught.value.retry_after >= 1
    assert engine.queue_depth + engine.active == slots + max_queue
    model.let_go()
    for request in requests:
        assert outcome(request)[1].detail == "max_tokens"
    engine.submit(last := sequence([0, 3]))
    assert outcome(last)[1].detail == "max_tokens"


def broken_image(stage: str) -> PreparedImage:
    def fail(*_: Any) -> Any:
        raise ValueError(f"broken in {stage}")

    good = image(1000)
    if stage == "features":
        return PreparedImage(good.passes, 1, lambda outputs: np.zeros((2, 1)))
    if stage == "the pass":
        return PreparedImage([fail], 1, good.assemble)
    return PreparedImage(good.passes, 1, fail if stage == "assemble" else good.assemble)


@pytest.mark.parametrize("stage", ["the pass", "encode", "assemble", "features", "prefill", "choosing", "text"])
def test_a_failure_of_one_request_leaves_the_others_and_the_engine_alone(start, stage, monkeypatch) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model)
    before, after = sequence([0, 3], max_new_tokens=20), sequence([0, 5], max_new_tokens=20)
    engine.submit(before)
    model.step_to(3)
    bad = sequence([0, 6, *[IMAGE] * (3 if stage == "features" else 1)], images=[broken_image(stage)])

    def fail(call: tuple[Any, ...]) -> None:
        if call[0] == stage and (stage != "prefill" or call[2] == len(bad.prompt_ids)):
            model.fail = lambda call: None
            raise ValueError(f"broken in {stage}")

    def refuse(_: Any) -> Any:
        raise ValueError(f"broken in {stage}")

    model.fail = fail
    if stage == "choosing":
        monkeypatch.setattr(bad.chooser.sampler, "choose", refuse)
    if stage == "text":
        monkeypatch.setattr(bad.text_stream, "add", refuse)
        monkeypatch.setattr(bad.text_stream, "finish", lambda: refuse(None))
    engine.submit(bad)
    engine.submit(after)
    model.let_go()
    _, finished = outcome(bad)
    assert (finished.reason, finished.detail) == ("cancelled", "error")
    assert finished.error is not None
    assert "ValueError" in finished.error
    for request, prompt in ((before, [0, 3]), (after, [0, 5])):
        assert outcome(request)[1].detail == "max_tokens"
        assert request.tokens == expected_tokens(prompt, 20)
    engine.submit(later := sequence([0, 7]))
    assert outcome(later)[1].detail == "max_tokens"


def test_a_row_from_which_no_token_can_be_chosen_ends_alone_in_the_middle_of_a_batch(start) -> None:
    class Sick(FakeModel):
        def _logits(self, row: int) -> np.ndarray:
            logits = super()._logits(row)
            if self.cache[row][1] == 6 and len(self.cache[row]) == 5:
                logits[:] = np.nan
            return logits

    model = Sick()
    model.hold()
    engine = start(model)
    requests = [sequence([0, first], max_new_tokens=9) for first in (3, 6, 7)]
    for request in requests:
        engine.submit(request)
    model.let_go()
    details = [outcome(request)[1].detail for request in requests]
    assert details == ["max_tokens", "error", "max_tokens"]
    assert len(requests[1].tokens) == 3
    assert requests[2].tokens == expected_tokens([0, 7], 9)


def test_a_failed_step_ends_its_rows_and_the_engine_goes_on(start) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model, slots=2)
    rows, queued = [sequence([0, 3]), sequence([0, 4])], sequence([0, 5])
    for request in (*rows, queued):
        engine.submit(request)

    def fail(call: tuple[Any, ...]) -> None:
        if call == ("step", 2):
            model.fail = lambda call: None
            raise RuntimeError("the device is gone")

    model.fail = fail
    model.let_go()
    for request in rows:
        _, finished = outcome(request)
        assert finished.detail == "error"
        assert finished.error == "RuntimeError: the device is gone"
    assert outcome(queued)[1].detail == "max_tokens"
    assert queued.tokens == expected_tokens([0, 5], 5)


def test_a_crash_of_the_loop_lets_nobody_wait_for_ever(start) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model, slots=3)
    requests = [sequence([0, 3 + i], max_new_tokens=3 + i) for i in range(5)]
    for request in requests:
        engine.submit(request)

    def fail(call: tuple[Any, ...]) -> None:
        if call[0] == "move":
            raise RuntimeError("no memory")

    model.fail = fail
    model.let_go()
    details = [outcome(request)[1].detail for request in requests]
    assert details[0] == "max_tokens"
    assert details[1:] == ["error"] * 4
    assert engine.drain(PATIENCE)
    engine.close()
    with pytest.raises(EngineClosed):
        engine.submit(sequence([0, 3]))


def test_close_ends_everything_at_every_stage_and_may_be_called_again(start) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model, slots=2)
    decoding = sequence([0, 3], max_new_tokens=50)
    encoding = sequence([0, IMAGE, IMAGE], images=[image(1000, 2)])
    queued = sequence([0, 5])
    engine.submit(decoding)
    model.step_to(3)
    engine.submit(encoding)
    engine.submit(queued)
    model.step_to(4)
    closers = [threading.Thread(target=engine.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    until(lambda: not engine.alive)
    model.let_go()
    for request in (decoding, encoding, queued):
        assert outcome(request)[1].detail == "cancelled"
    for closer in closers:
        closer.join(PATIENCE)
        assert not closer.is_alive()
    assert len(model.calls) <= 6
    engine.close()
    assert (engine.active, engine.queue_depth) == (0, 0)
    with pytest.raises(EngineClosed):
        engine.submit(sequence([0, 3]))


def test_drain_waits_until_nothing_is_left_and_says_when_it_gave_up(start) -> None:
    model = FakeModel()
    engine = start(model, slots=1)
    assert engine.drain(0)
    model.hold()
    requests = [sequence([0, 3]), sequence([0, 4])]
    for request in requests:
        engine.submit(request)
    assert not engine.drain(0.01)
    model.let_go()
    assert engine.drain(PATIENCE)
    assert all(request.finished for request in requests)
    assert (engine.active, engine.queue_depth) == (0, 0)


def test_the_counts_say_who_waits_and_who_runs(start) -> None:
    model = FakeModel()
    model.hold()
    engine = start(model, slots=2)
    for first in (3, 4, 5):
        engine.submit(sequence([0, first], max_new_tokens=50))
    model.step_to(4)
    assert (engine.active, engine.queue_depth) == (2, 1)


PROMPT = [0, 250]


@pytest.mark.parametrize(
    ("answer", "changes", "reason", "detail", "text", "tokens"),
    [
        ("abc", {}, "stop", "eos", "abc", 3),
        ("", {}, "stop", "eos", "", 0),
        ("abc", {"max_new_tokens": 3}, "length", "max_tokens", "abc", 3),
        ("abc", {"max_new_tokens": 1}, "length", "max_tokens", "a", 1),
        ("ab cd", {"stop": ("c",)}, "stop", "stop_string", "ab", 4),
        ("ab cd", {"stop": ("c",), "max_new_tokens": 4}, "stop", "stop_string", "ab", 4),
        ("abcab", {"stop": ("abd",)}, "stop", "eos", "abcab", 5),
        ("abcdef", {"max_length": 5}, "length", "context", "abcd", 4),
        ("x" * 200, {"stop_on_loop": True}, "stop", "loop", "x" * 129, 129),
        ("x" * 200, {"stop_on_loop": False}, "stop", "eos", "x" * 200, 200),
        ("ab文", {"max_new_tokens": 4}, "length", "max_tokens", "ab\N{REPLACEMENT CHARACTER}", 4),
        ("abababab", {"no_repeat_ngram_size": 2}, None, None, "aba", None),
    ],
)
def test_a_generation_ends_for_the_right_reason_with_the_right_counts(
    start, answer, changes, reason, detail, text, tokens
) -> None:
    engine = start(FakeModel(scripted({250: answer})))
    request = sequence(PROMPT, **{"max_new_tokens": 1000, **changes})
    if detail is None:  # the filter bends the answer after its beginning, so the script ends in an error
        request = sequence(PROMPT, **{"max_new_tokens": 3, **changes})
        engine.submit(request)
        assert outcome(request)[0] == text
        return
    engine.submit(request)
    said, finished = outcome(request)
    assert said == text
    assert (finished.reason, finished.detail) == (reason, detail)
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (2, tokens)
    assert len(request.tokens) == tokens


def test_pieces_account_for_the_tokens_behind_them(start) -> None:
    engine = start(FakeModel(scripted({250: "a文b"})))
    request = sequence(PROMPT, max_new_tokens=100)
    engine.submit(request)
    events = []
    while not isinstance(event := request.next_event(PATIENCE), Finished):
        events.append(event)
    assert events == [TextDelta("a", 1), TextDelta("文", 3), TextDelta("b", 1)]


def test_blocks_are_found_in_the_answer_as_the_model_wrote_it_and_come_with_its_end(start) -> None:
    class Shout:
        def push(self, text: str) -> str:
            return text.upper()

        def finish(self) -> str:
            return "!"

    engine = start(FakeModel())
    request = Sequence(
        [0], [], InferenceSettings(max_new_tokens=3, no_repeat_ngram_size=0), WORDS, 100, output=Shout(),
        blocks=lambda text: (Block("text", text),),
    )  # fmt: skip
    engine.submit(request)
    text, finished = outcome(request)
    assert text.endswith("!")
    assert [block.text for block in finished.blocks] == [WORDS.tokenizer.decode(request.tokens)]
    assert finished.blocks[0].text.upper() + "!" == text


def test_timings_add_up_along_the_way_of_a_request(start) -> None:
    engine = start(FakeModel())
    request = Sequence([0, IMAGE], [image(1000)], InferenceSettings(max_new_tokens=5), WORDS, 100, prepare_seconds=0.25)
    engine.submit(request)
    timings = outcome(request)[1].timings
    assert timings.prepare == 0.25
    assert min(timings.queued, timings.vision, timings.prefill, timings.decode) >= 0
    assert timings.first_token >= timings.queued + timings.vision + timings.prefill


class Together(FakeModel):
    """Takes up to four passes at once; fails where a pass of some picture is among them."""

    batch = 4

    def __init__(self, bad: int | None = None) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.bad = bad

    def encode_all(self, passes: list[Feeds]) -> list[Feeds]:
        self.sizes.append(len(passes))
        if self.bad in [int(feeds["pixels"][0]) for feeds in passes]:
            raise RuntimeError("no memory for all of them")
        return [super(Together, self).encode(feeds, Stop()) for feeds in passes]

    def encode(self, feeds: Feeds, stop: Stop) -> Feeds:
        if int(feeds["pixels"][0]) == self.bad:
            raise RuntimeError("no memory for this one")
        return super().encode(feeds, stop)


def test_passes_of_one_page_go_together_where_the_device_takes_several(start) -> None:
    model = Together()
    request = sequence([0, *[IMAGE] * 6, 5], images=[image(1000, 6)])
    start(model).submit(request)
    outcome(request)
    assert model.sizes == [4, 2]
    assert request.tokens == expected_tokens([0, *range(1000, 1006), 5], 5)


def test_passes_of_different_requests_go_together_and_each_gets_its_own(start) -> None:
    model = Together()
    model.hold()
    engine = start(model)
    first = sequence([0, IMAGE], images=[image(1000)])
    engine.submit(first)
    model.wait_for(1)  # its pass runs, alone; the others come meanwhile
    others = [sequence([0, IMAGE, IMAGE], images=[image(2000 + 10 * i, 2)]) for i in range(2)]
    for request in others:
        engine.submit(request)
    model.let_go()
    for request in (first, *others):
        outcome(request)
    assert sum(model.sizes) == 4
    assert first.tokens == expected_tokens([0, 1000], 5)
    assert [request.tokens for request in others] == [
        expected_tokens([0, 2000, 2001], 5), expected_tokens([0, 2010, 2011], 5)
    ]  # fmt: skip


def test_of_passes_that_fail_together_only_the_one_that_fails_alone_ends_its_request(start) -> None:
    model = Together(bad=2000)
    model.hold()
    engine = start(model)
    requests = [sequence([0, IMAGE], images=[image(first)]) for first in (1000, 2000, 3000)]
    for request in requests:
        engine.submit(request)
    model.let_go()
    found = [outcome(request)[1] for request in requests]
    assert [finished.detail for finished in found] == ["max_tokens", "error", "max_tokens"]
    assert "no memory for this one" in str(found[1].error)
