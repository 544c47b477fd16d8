"""The engine's batch: who joins, moves and shares a step says what each says alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine import Engine
from runtime.runtime_errors import QueueFull
from runtime.sequence import Sequence
from tests.runtime.scripted_engine import (
    IMAGE,
    PATIENCE,
    TOKENIZER,
    FakeModel,
    SlowEncoder,
    expected_tokens,
    image,
    outcome,
    sequence,
)


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
