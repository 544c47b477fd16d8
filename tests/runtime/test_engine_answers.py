"""What the engine tells a caller: pieces, the reason of the end, counts, timings and blocks."""

from __future__ import annotations

import pytest

from models.blocks import Block
from models.settings import InferenceSettings
from runtime.requests import Finished, TextDelta
from runtime.sequence import Sequence
from tests.runtime.scripted_engine import (
    IMAGE,
    PATIENCE,
    WORDS,
    FakeModel,
    image,
    outcome,
    scripted,
    sequence,
)


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
