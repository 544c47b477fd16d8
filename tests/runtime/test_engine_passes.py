"""Vision passes of the engine: beside what decodes, ahead of time, and together where the device takes several."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import pytest

from models.family import Feeds, PreparedImage
from runtime.stop import Stop
from tests.runtime.scripted_engine import (
    IMAGE,
    PATIENCE,
    FakeModel,
    SlowEncoder,
    expected_tokens,
    image,
    outcome,
    sequence,
)


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


@pytest.mark.parametrize("how", ["cancel", "deadline", "close"])
def test_a_pass_that_runs_is_ended_and_the_others_notice_nothing(start, how) -> None:
    model = SlowEncoder()
    engine = start(model)
    beside = sequence([0, 3], max_new_tokens=100)
    request = sequence([0, IMAGE], images=[image(1000)], deadline_s=1000 if how == "deadline" else None)
    engine.submit(request)
    model.wait_for_pass(1000)  # which nobody lets go
    if how == "deadline":
        request.clock.submitted -= 1001
    engine.submit(beside)
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
