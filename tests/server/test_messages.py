"""How a conversation becomes one prompt."""

from __future__ import annotations

from typing import Any

import pytest

from models.errors import InvalidInput
from server.messages import from_chat, from_responses
from server.schema import Message, ResponseItem

IMAGE = {"type": "image_url", "image_url": {"url": "data:,a"}}
BARE = {"type": "image_url", "image_url": "data:,b"}
INPUT = {"type": "input_image", "image_url": "data:,c"}


def text(value: str, kind: str = "text") -> dict[str, str]:
    return {"type": kind, "text": value}


def prompt(*messages: tuple[str, Any]) -> tuple[str, list[str]]:
    collapsed = from_chat([Message.model_validate({"role": role, "content": content}) for role, content in messages])
    return collapsed.finish(), collapsed.image_urls


def test_parts_become_lines_in_their_order_with_a_slot_for_each_image() -> None:
    assert prompt(("user", [IMAGE, text("Free OCR.")])) == ("<image>\nFree OCR.", ["data:,a"])
    assert prompt(("user", [text("a"), IMAGE, BARE, text("b", "input_text"), INPUT])) == (
        "a\n<image>\n<image>\nb\n<image>",
        ["data:,a", "data:,b", "data:,c"],
    )


def test_slots_in_a_text_stay_where_they_are() -> None:
    assert prompt(("user", [text("x <image> y <image>"), IMAGE, BARE]))[0] == "x <image> y <image>"
    assert prompt(("user", [IMAGE, text("<image>")]))[0] == "<image>"
    assert prompt(("user", [IMAGE, text("<image>\nFree OCR.")]))[0] == "<image>\nFree OCR."


@pytest.mark.parametrize("content", [[IMAGE, text("<image> <image>")], [IMAGE, BARE, text("<image>")]])
def test_slots_that_do_not_match_the_images_are_refused(content: list[Any]) -> None:
    with pytest.raises(InvalidInput, match="slots for"):
        prompt(("user", content))


def test_history_collapses_to_system_messages_and_the_latest_user_message() -> None:
    assert prompt(
        ("system", "Be exact."),
        ("user", [IMAGE, text("old")]),
        ("assistant", "old answer"),
        ("developer", [text("And brief.")]),
        ("user", [BARE, text("new")]),
        ("tool", "noise"),
    ) == ("Be exact.\nAnd brief.\n<image>\nnew", ["data:,b"])


def test_unknown_parts_are_accepted_in_history_only() -> None:
    odd = {"type": "input_audio", "input_audio": {"data": "x"}}
    assert prompt(("user", [odd]), ("assistant", None), ("user", "hi"))[0] == "hi"
    with pytest.raises(InvalidInput, match="'input_audio' are not supported"):
        prompt(("user", [odd]))


def test_files_take_a_slot_in_either_form() -> None:
    for part in ({"type": "file", "file": {"file_data": "data:,a"}}, {"type": "input_file", "file_data": "data:,a"}):
        collapsed = from_chat([Message.model_validate({"role": "user", "content": [part, text("Free OCR.")]})])
        assert (collapsed.finish(), collapsed.files, collapsed.images) == ("<image>\nFree OCR.", ["data:,a"], 1)


def test_words_are_the_texts_without_the_images() -> None:
    collapsed = from_chat([Message.model_validate({"role": "user", "content": [text(" \n"), IMAGE]})])
    assert (collapsed.words, collapsed.images) == ("", 1)
    messages = [("system", "Be exact."), ("user", [IMAGE, text("Read."), BARE])]
    collapsed = from_chat([Message.model_validate({"role": role, "content": content}) for role, content in messages])
    assert (collapsed.words, collapsed.images) == ("Be exact.\nRead.", 2)


@pytest.mark.parametrize(
    "part", [{"type": "file"}, {"type": "input_file", "file_id": "file-1"}, {"type": "file", "file": 3}]
)
def test_a_file_part_without_its_data_is_explained(part: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="file_data"):
        prompt(("user", [part]))


def test_an_image_part_without_its_url_is_explained() -> None:
    with pytest.raises(InvalidInput, match="image_url is incomplete"):
        prompt(("user", [{"type": "image_url"}]))


def test_a_conversation_without_a_user_message_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no message with the role user"):
        prompt(("system", "hi"))


def test_responses_take_a_string_or_items_and_instructions() -> None:
    assert from_responses("hello", "Be exact.").finish() == "Be exact.\nhello"
    items = [
        {"type": "message", "role": "user", "content": "old"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "said"}]},
        {"type": "reasoning", "summary": []},
        {"role": "user", "content": [INPUT, text("new", "input_text")]},
    ]
    collapsed = from_responses([ResponseItem.model_validate(item) for item in items], None)
    assert (collapsed.finish(), collapsed.image_urls) == ("<image>\nnew", ["data:,c"])
