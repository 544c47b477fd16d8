"""Prompts on their way into the cache: in chunks between the steps of others, short ones together."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from runtime.engine import Engine
from runtime.sequence import Sequence
from runtime.stop import Stop
from tests.runtime.scripted_engine import (
    PATIENCE,
    TOKENIZER,
    FakeModel,
    expected_tokens,
    outcome,
    sequence,
)


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
