"""What fails in the engine ends the requests that it belongs to, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.family import PreparedImage
from runtime.runtime_errors import EngineClosed
from tests.runtime.scripted_engine import (
    IMAGE,
    PATIENCE,
    FakeModel,
    expected_tokens,
    image,
    outcome,
    sequence,
)


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
