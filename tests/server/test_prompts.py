"""What programs send around a picture never changes the prompt that the model sees, over HTTP in both APIs."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from models.config import load_config
from models.family import QUOTED_SLOT
from tests.server.conftest import MakeService, Service, data_url, image_part

READ = "<image>\nFree OCR."
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
ATTACHED = '<attached_files>\n<file type="image" url="1"/>\n</attached_files>\n\n'


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def asked(service: Service, messages: list[Any], **more: Any) -> list[tuple[str, list[tuple[int, int]]]]:
    """Prompt and sizes of the pictures of chat and Responses, plain and streamed."""
    model = "deepseek-ocr"
    instructions = [one["content"] for one in messages if one["role"] in ("system", "developer")]
    without_system = [one for one in messages if one["role"] not in ("system", "developer", "tool")]
    bodies = [("/v1/chat/completions", {"messages": messages})]
    if all(one["role"] != "tool" for one in messages):
        bodies.append(("/v1/responses", {"input": messages}))
        bodies.append(("/v1/responses", {"input": without_system, "instructions": "\n".join(instructions) or None}))
    for path, body in bodies:
        for stream in (False, True):
            result = service.post({"model": model, "stream": stream, **body, **more}, path)
            assert result.status_code == 200, result.text
            assert "Hello" in result.text, result.text
    requests = service.source.models[model].requests[-2 * len(bodies) :]
    return [(request.prompt, [image.size for image in request.images]) for request in requests]


def one(service: Service, messages: list[Any], **more: Any) -> tuple[str, list[tuple[int, int]]]:
    first, *others = asked(service, messages, **more)
    assert all(other == first for other in others)
    return first


SMALL = (40, 30)


@pytest.mark.parametrize(
    "messages",
    [
        [user(image_part(), text("Free OCR."))],
        [user(text("Free OCR."), image_part())],
        [SYSTEM, user(text("Free OCR."), image_part())],
        [{"role": "developer", "content": "Be brief."}, user(image_part(), text("Free OCR.")), SYSTEM],
        [user(text(ATTACHED), text("Free OCR."), image_part())],
        [user(text(f"{ATTACHED}Free OCR."), image_part())],
        [user(image_part()), {"role": "user", "content": "Free OCR."}],
        [{"role": "user", "content": "Free OCR."}, SYSTEM, user(image_part())],
        [user(image_part(), text("x")), {"role": "assistant", "content": "y"}, user(text("Free OCR."))],
        [user(text("Free OCR.")), {"role": "assistant", "content": None}, {"role": "tool", "content": [image_part()]}],
    ],
)
def test_the_same_question_in_any_wrapping_is_the_same_prompt(service: Service, messages: list[Any]) -> None:
    assert one(service, messages) == (READ, [SMALL])


def test_a_text_that_is_only_wrapping_leaves_the_default_task(service: Service) -> None:
    expected = ("<image>\n<|grounding|>Convert the document to markdown.", [SMALL])
    assert one(service, [SYSTEM, user(text(ATTACHED), image_part())]) == expected


def test_slots_are_slots_only_when_there_are_as_many_as_pictures(service: Service) -> None:
    assert one(service, [user(text("a <image> b"), image_part())])[0] == "a <image> b"
    assert one(service, [user(text("<image> <image>"), image_part())])[0] == f"<image>\n{QUOTED_SLOT} {QUOTED_SLOT}"


def test_system_messages_are_ignored_unless_the_server_is_told_otherwise(
    make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [SYSTEM, user(image_part(), text("Free OCR."))]
    ignoring = make_service()
    with caplog.at_level(logging.INFO, "server.http.questions"):
        assert one(ignoring, messages) == (READ, [SMALL])
    said = [record for record in caplog.records if "system messages are ignored" in record.message]
    assert len(said) == 1  # for six requests
    assert one(ignoring, [SYSTEM, user(image_part())], task="free") == (READ, [SMALL])
    taking = make_service(system_messages="prompt")
    assert one(taking, messages)[0] == "<image>\nYou are a helpful assistant.\nFree OCR."
    assert one(taking, [SYSTEM, user(image_part())], task="free") == (READ, [SMALL])


def test_the_configuration_names_wrappers_of_other_clients(make_service: MakeService, tmp_path: Any) -> None:
    messages = [user(text("<notes>mine</notes>Free OCR."), image_part())]
    assert one(make_service(prompt_wrappers=("notes",)), messages)[0] == READ
    assert one(make_service(), messages)[0] == "<image>\n<notes>mine</notes>Free OCR."
    path = tmp_path / "config.toml"
    path.write_text('[server]\nsystem_messages = "prompt"\nprompt_wrappers = ["notes", "my-notes"]\n')
    assert load_config(path).server["prompt_wrappers"] == ["notes", "my-notes"]
    path.write_text('[server]\nprompt_wrappers = ["<notes>"]\n')
    with pytest.raises(Exception, match="names of tags"):
        load_config(path)


WORDS = st.lists(st.text("abcdefgh .?", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=4)
NOISE = st.sampled_from(["system", "developer"]).map(lambda role: {"role": role, "content": "Answer in French."})


@st.composite
def conversations(draw: st.DrawFn, lines: list[str]) -> list[dict[str, Any]]:
    """One picture and some lines, spread over parts, messages and roles in any order, with all that clients add."""
    parts = [text(draw(st.sampled_from(["", "\n", " "])) + line) for line in lines]
    parts.insert(draw(st.integers(0, len(parts))), image_part())
    for wrapping in draw(st.lists(st.sampled_from([ATTACHED, "<context>\nx\n</context>", " "]), max_size=2)):
        parts.insert(draw(st.integers(0, len(parts))), text(wrapping))
    cuts = sorted(draw(st.lists(st.integers(0, len(parts)), max_size=2)))
    bounds = [0, *cuts, len(parts)]
    messages = [user(*parts[begin:end]) for begin, end in pairwise(bounds)]
    if draw(st.booleans()):  # the picture came in an earlier turn, or from a tool
        picture = next(part for part in parts if part["type"] == "image_url")
        for message in messages:
            message["content"] = [part for part in message["content"] if part is not picture]
        earlier = user(picture, text("old words"))
        tool = [{"role": "assistant", "content": None}, {"role": "tool", "content": [picture]}]
        answer = {"role": "assistant", "content": "old answer"}
        messages = [*draw(st.sampled_from([[earlier], tool, [user(text("older")), *tool]])), answer, *messages]
    for noise in draw(st.lists(NOISE, max_size=2)):
        messages.insert(draw(st.integers(0, len(messages))), noise)
    return messages


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), lines=WORDS)
def test_any_order_and_split_around_a_picture_gives_the_prompt_of_the_picture_and_its_text(
    service: Service, data: st.DataObject, lines: list[str]
) -> None:
    assert one(service, data.draw(conversations(lines))) == ("<image>\n" + "\n".join(lines), [SMALL])


def test_several_pictures_keep_the_order_of_the_conversation(service: Service) -> None:
    parts = [image_part(data_url(Image.new("RGB", (10 * number, 20)))) for number in (3, 4, 5)]
    mixed = [user(parts[0], text("Compare."), parts[1]), user(parts[2])]
    assert one(service, mixed) == ("<image>\n<image>\n<image>\nCompare.", [(30, 20), (40, 20), (50, 20)])
