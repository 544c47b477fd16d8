"""A page read by its parts, with a scripted model: the parts run together, their texts come in order, and each part
answers for itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from PIL import Image

from models.family import OutputFilter, Verbatim
from models.layout.page_rules import GLM_SDK, PADDLEX, PageRules
from models.layout.regions import Region
from models.layout.rules import DetectionRules
from models.layout.task import DOCUMENT_PROMPT
from models.model_errors import InvalidInput
from models.settings import InferenceSettings
from runtime.confidence import TokenLogprob
from runtime.pages import PageGeneration, PageReader
from runtime.requests import Finished, Request, TextDelta
from tests.clock import Clock
from tests.server.fake import FakeGeneration, ScriptedModel, Step
from tests.waiting import until

PROMPTS = {"text": "<image>OCR:", "table": "<image>Table:", "formula": "<image>Formula:"}


class Model(ScriptedModel):
    """Says what is asked of it, and nothing of a family."""

    def filter_for(self, prompt: str, settings: InferenceSettings) -> OutputFilter:
        return Verbatim()


class Detector:
    """Finds what it was told."""

    def __init__(self, regions: list[Region], fails: Exception | None = None) -> None:
        self.regions, self.fails, self.rules = regions, fails, list[DetectionRules | None]()
        self.may_go = threading.Event()
        self.may_go.set()

    def detect(self, image: Image.Image, rules: DetectionRules | None = None) -> list[Region]:
        self.rules.append(rules)
        assert self.may_go.wait(30)
        if self.fails is not None:
            raise self.fails
        return self.regions


def column(*labels: str, height: int = 10) -> list[Region]:
    """Below each other; the part numbered n is 20 + n wide, which tells its picture."""
    return [Region(label, (0, 20 * i, 20 + i, 20 * i + height), 0.9, i) for i, label in enumerate(labels)]


def number(request: Request) -> int:
    """Of the part whose picture is asked about."""
    (picture,) = request.images
    return picture.width - 20


def page(parts: int = 1) -> Image.Image:
    return Image.new("RGB", (400, max(100, 20 * parts)), "white")


def reader(model: ScriptedModel, regions: list[Region] | Detector, rules: PageRules = PADDLEX) -> PageReader:
    detector = regions if isinstance(regions, Detector) else Detector(regions)
    return PageReader(lambda: detector, lambda: model, PROMPTS, rules)  # type: ignore[arg-type, return-value]


def begin(pages: PageReader, image: Image.Image | None = None, **settings: object) -> PageGeneration:
    request = Request(DOCUMENT_PROMPT, [image or page(len(column()))], InferenceSettings().override(settings))
    return pages.submit(request)


def collect(generation: PageGeneration, seconds: float = 30.0) -> tuple[list[TextDelta], Finished]:
    pieces, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        event = generation.next_event(0.5)
        if isinstance(event, Finished):
            return pieces, event
        if event is not None:
            pieces.append(event)
    raise AssertionError("the page has not ended")


def says(answer: Callable[[int], Iterable[Step]]) -> Callable[[Request], Iterable[Step]]:
    return lambda request: answer(number(request))


def test_the_texts_come_in_reading_order_whatever_order_the_parts_end_in() -> None:
    model = Model(says(lambda i: [0.02 * (6 - i), f"part {i}"]), slots=6)
    pieces, finished = collect(begin(reader(model, column(*["text"] * 6)), page(6)))
    assert "".join(piece.text for piece in pieces) == "\n\n".join(f"part {i}" for i in range(6))
    assert len(pieces) == 6
    assert [block.text for block in finished.blocks] == [f"part {i}" for i in range(6)]
    assert (finished.reason, finished.detail, finished.error) == ("stop", "eos", None)
    assert finished.usage.completion_tokens == 6
    assert finished.usage.prompt_tokens == 6 * 15


def test_each_part_is_asked_with_its_own_task_and_picture_and_settings() -> None:
    model = Model(says(lambda i: [f"{i}"]))
    labels = ["text", "table", "display_formula", "image", "header", "seal"]
    rules = replace(PADDLEX, ink_only=False)
    _, finished = collect(begin(reader(model, column(*labels), rules), page(6), max_new_tokens=77))
    asked = {number(request): request for request in model.requests}
    assert {i: request.prompt for i, request in asked.items()} == {
        0: PROMPTS["text"], 1: PROMPTS["table"], 2: PROMPTS["formula"], 4: PROMPTS["text"],
    }  # fmt: skip
    assert {request.settings.max_new_tokens for request in asked.values()} == {77}
    assert all(request.raw for request in asked.values())
    assert [block.text for block in finished.blocks] == ["0", "1", "2", "", "4", ""]
    assert [block.label for block in finished.blocks] == labels


@pytest.mark.parametrize("count", [0, 1, 16, 300])
def test_a_page_of_any_number_of_parts_is_read_with_no_more_at_once_than_the_model_takes(count: int) -> None:
    model = Model(says(lambda i: [f"<{i}>"]), slots=4)
    pieces, finished = collect(begin(reader(model, column(*["text"] * count)), page(count)))
    assert "".join(piece.text for piece in pieces) == "\n\n".join(f"<{i}>" for i in range(count))
    assert len(finished.blocks) == len(model.requests) == count
    assert model.deepest <= 5
    assert finished.detail == "eos"


def test_a_page_on_which_nothing_is_found_is_read_whole_unless_it_is_blank() -> None:
    model = Model(lambda request: ["a line"])
    blank = page()
    assert collect(begin(reader(model, []), blank))[0] == []
    line = Image.new("RGB", (400, 100), "white")
    line.paste("black", (50, 40, 350, 60))
    pieces, finished = collect(begin(reader(model, []), line))
    assert [piece.text for piece in pieces] == ["a line"]
    assert [block.box for block in finished.blocks] == [(0, 0, 400, 100)]
    assert collect(begin(reader(model, [], PADDLEX.change({"whole_when_empty": False})), line))[0] == []


def test_a_part_that_fails_or_is_cut_marks_itself_and_the_page_goes_on() -> None:
    def script(request: Request) -> Iterable[Step]:
        if number(request) == 1:
            raise RuntimeError("out of luck")
        return [f"part {number(request)}", *([("length", "max_tokens")] if number(request) == 2 else [])]

    pieces, finished = collect(begin(reader(Model(script), column(*["text"] * 4)), page(4)))
    assert "".join(piece.text for piece in pieces) == "part 0\n\npart 2\n\npart 3"
    assert (finished.reason, finished.detail, finished.error) == ("stop", "eos", None)
    assert [block.detail for block in finished.blocks] == ["", "error", "max_tokens", ""]
    assert finished.blocks[1].error == "the model failed on this part"


def test_a_page_whose_parts_all_fail_has_failed() -> None:
    def script(request: Request) -> Iterable[Step]:
        raise RuntimeError("out of luck")

    pieces, finished = collect(begin(reader(Model(script), column("text", "text")), page(2)))
    assert (pieces, finished.detail) == ([], "error")
    assert "every part of the page failed" in str(finished.error)


def test_a_part_that_the_model_cannot_take_marks_itself() -> None:
    class Picky(Model):
        def submit(self, request: Request) -> FakeGeneration:
            if number(request) == 0:
                raise InvalidInput("too thin")
            return super().submit(request)

    pieces, finished = collect(begin(reader(Picky(says(lambda i: [f"{i}"])), column("text", "text")), page(2)))
    assert [piece.text for piece in pieces] == ["1"]
    assert finished.blocks[0].error == "too thin"


def test_a_detector_that_fails_ends_the_page_with_its_reason() -> None:
    pieces, finished = collect(begin(reader(Model(), Detector([], ValueError("no graph")))))
    assert (pieces, finished.detail) == ([], "error")
    assert finished.error == "the layout of the page could not be found: no graph"


def test_a_cancelled_page_ends_at_once_and_what_was_read_is_kept() -> None:
    model = Model(says(lambda i: [f"part {i}"] if i == 0 else [60.0, "late"]), slots=2)
    generation = begin(reader(model, column(*["text"] * 8)), page(8))
    first = generation.next_event(30)
    assert isinstance(first, TextDelta)
    generation.cancel()
    _, finished = collect(generation)
    assert (finished.reason, finished.detail) == ("cancelled", "cancelled")
    assert [block.text for block in finished.blocks] == ["part 0", *[""] * 7]
    assert [block.detail for block in finished.blocks] == ["", *["cancelled"] * 7]
    assert len(model.requests) < 8
    assert all(one.cancelled.is_set() for one in generation.generations[1:])  # type: ignore[attr-defined]


def test_a_page_is_cancelled_while_its_parts_are_looked_for() -> None:
    detector = Detector(column("text"))
    detector.may_go.clear()
    model = Model()
    generation = begin(reader(model, detector))
    assert generation.next_event(0.05) is None
    assert generation.stage == "seeing"
    generation.cancel()
    assert collect(generation)[1].detail == "cancelled"  # before the detector may go
    detector.may_go.set()
    assert model.requests == []


def test_the_deadline_is_the_pages_and_its_parts_get_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("runtime.pages.time", clock)
    model = Model(says(lambda i: [f"part {i}"] if i < 2 else [600.0, "late"]), slots=1)
    generation = begin(reader(model, column(*["text"] * 5)), page(5), deadline_s=600.0)
    pieces = [generation.next_event(30) for _ in range(2)]
    assert [piece.text for piece in pieces if isinstance(piece, TextDelta)] == ["part 0", "\n\npart 1"]
    until(lambda: generation.next_event(0.01) or len(model.requests) == 4)  # as many more as go at once
    clock.ahead = 1000.0
    for one in generation.generations:  # what the engine does at a deadline
        one.cancel()
    late, finished = collect(generation)
    assert (late, finished.detail) == ([], "deadline")
    left = [request.settings.deadline_s or 0.0 for request in model.requests]
    assert left == sorted(left, reverse=True)
    assert 0 < left[-1] < left[0] < 600
    assert [block.detail for block in finished.blocks] == ["", "", "cancelled", "cancelled", "deadline"]

    ends = Model(says(lambda i: [f"part {i}", *([("length", "deadline")] if i else [])]))
    assert collect(begin(reader(ends, column("text", "text")), page(2)))[1].detail == "deadline"

    late = begin(reader(Model(), Detector(column("text"))), deadline_s=0.0)
    assert collect(late)[1].detail == "deadline"


def test_while_others_wait_a_page_has_one_part_at_work() -> None:
    gate = threading.Event()

    def script(request: Request) -> Iterable[Step]:
        if len(request.images) == 0:
            gate.wait(30)
        return [0.03, "x"]

    model = Model(script, slots=1)
    model.submit(Request("a", []))  # runs
    others = [model.submit(Request("b", [])) for _ in range(2)]
    generation = begin(reader(model, column(*["text"] * 6)), page(6))

    def parts() -> int:
        return sum(len(request.images) for request in model.requests)

    until(lambda: generation.next_event(0.01) or parts())
    for _ in range(5):
        generation.next_event(0.05)
    assert parts() == 1
    gate.set()
    assert len(collect(generation)[1].blocks) == 6
    assert all(other.ended.wait(30) for other in others)


def test_a_full_queue_is_waited_for() -> None:
    gate = threading.Event()
    model = Model(lambda request: [0.0, "x"] if request.images or gate.wait(30) else [], slots=1, max_queue=1)
    model.submit(Request("runs", []))
    until(lambda: model.active == 1)
    model.submit(Request("waits", []))
    generation = begin(reader(model, column("text", "text")), page(2))
    assert generation.next_event(0.3) is None
    gate.set()
    assert [piece.text for piece in collect(generation)[0]] == ["x", "\n\nx"]


def test_places_that_a_model_writes_within_a_part_are_left_out() -> None:
    written = "<|ref|>text<|/ref|><|det|>[[0, 0, 999, 999]]<|/det|>\nA line"
    pieces, finished = collect(begin(reader(Model(lambda request: [written]), column("text")), page()))
    assert [piece.text for piece in pieces] == ["A line"]
    assert finished.blocks[0].text == "A line"


def test_two_pages_share_the_batch_and_the_detector_sees_them_one_by_one() -> None:
    model = Model(says(lambda i: [0.05, f"{i}"]), slots=8)
    pages = reader(model, column(*["text"] * 4))
    first, second = begin(pages, page(4)), begin(pages, page(4))
    both: list[tuple[list[TextDelta], Finished]] = []
    threads = [threading.Thread(target=lambda one=one: both.append(collect(one))) for one in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert ["".join(piece.text for piece in pieces) for pieces, _ in both] == ["0\n\n1\n\n2\n\n3"] * 2


def test_log_probabilities_of_a_part_come_with_its_text() -> None:
    class Sure(Model):
        def submit(self, request: Request) -> FakeGeneration:
            generation = super().submit(request)
            inner = generation.next_event

            def with_logprobs(timeout: float | None = None) -> TextDelta | Finished | None:
                event = inner(timeout)
                token = TokenLogprob(event.text, -0.5, b"", ()) if isinstance(event, TextDelta) else None
                return replace(event, logprobs=(token,)) if token and isinstance(event, TextDelta) else event

            generation.next_event = with_logprobs  # type: ignore[method-assign]
            return generation

    model = Sure(says(lambda i: [f"a{i}", f"b{i}"]))
    pieces, _ = collect(begin(reader(model, column("text", "header", "text")), page(3)))
    assert [[one.text for one in piece.logprobs] for piece in pieces] == [["a0", "b0"], ["a1", "b1", "a2", "b2"]]
    assert [piece.token_count for piece in pieces] == [2, 4]


def test_the_vendor_s_rules_for_boxes_reach_the_detector() -> None:
    detector = Detector([])
    for rules in (PADDLEX, GLM_SDK, PADDLEX.change({"threshold": 0.9})):
        collect(begin(reader(Model(), detector, rules)))
    assert detector.rules[:2] == [None, GLM_SDK.detection]
    assert detector.rules[2] is not None
    assert detector.rules[2].threshold == 0.9


def test_rules_of_a_request_replace_the_models() -> None:
    model = Model(says(lambda i: [f"{i}"]))
    pages = reader(model, column("text", "header"))
    request = Request(DOCUMENT_PROMPT, [page(2)], rules=PADDLEX.change({"hidden": []}))
    assert "".join(piece.text for piece in collect(pages.submit(request))[0]) == "0\n\n1"


def test_a_page_is_one_picture() -> None:
    with pytest.raises(InvalidInput, match="there are 2 images"):
        reader(Model(), []).submit(Request(DOCUMENT_PROMPT, [page(), page()]))
