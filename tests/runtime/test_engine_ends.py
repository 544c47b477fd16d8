"""Requests that end early, and engines that are closed: at every stage, at once, and alone."""

from __future__ import annotations

import threading

import pytest

from runtime.runtime_errors import EngineClosed, QueueFull
from tests.runtime.scripted_engine import (
    IMAGE,
    PATIENCE,
    TOKENIZER,
    FakeModel,
    expected_tokens,
    image,
    outcome,
    sequence,
)
from tests.waiting import until


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
