"""How a conversation becomes one prompt."""

from __future__ import annotations

from typing import Any

import pytest

from models.asking import with_slots
from models.family import QUOTED_SLOT
from models.model_errors import InvalidInput
from server.http.messages import Prompt, from_chat, from_responses
from server.http.schema import Message, ResponseItem

IMAGE = {"type": "image_url", "image_url": {"url": "data:,a"}}
BARE = {"type": "image_url", "image_url": "data:,b"}
INPUT = {"type": "input_image", "image_url": "data:,c"}
FILE = {"type": "file", "file": {"file_data": "data:,f"}}


def text(value: str, kind: str = "text") -> dict[str, str]:
    return {"type": kind, "text": value}


def collapse(*messages: tuple[str, Any]) -> Prompt:
    return from_chat([Message.model_validate({"role": role, "content": content}) for role, content in messages])


def prompt(*messages: tuple[str, Any]) -> tuple[str, list[str]]:
    collapsed = collapse(*messages)
    return with_slots(collapsed.words(), collapsed.images), collapsed.image_urls + collapsed.files


def test_pictures_come_before_the_text_in_their_own_order_wherever_their_parts_stand() -> None:
    assert prompt(("user", [IMAGE, text("Free OCR.")])) == ("<image>\nFree OCR.", ["data:,a"])
    assert prompt(("user", [text("Free OCR."), IMAGE])) == ("<image>\nFree OCR.", ["data:,a"])
    assert prompt(("user", [text("Free OCR."), FILE])) == ("<image>\nFree OCR.", ["data:,f"])
    assert prompt(("user", [text("a"), IMAGE, BARE, text("b", "input_text"), INPUT])) == (
        "<image>\n<image>\n<image>\na\nb",
        ["data:,a", "data:,b", "data:,c"],
    )


def test_as_many_slots_in_the_text_as_pictures_stay_where_they_are() -> None:
    assert prompt(("user", [text("x <image> y <image>"), IMAGE, BARE]))[0] == "x <image> y <image>"
    assert prompt(("user", [IMAGE, text("<image>")]))[0] == "<image>"
    assert prompt(("user", [IMAGE, text("<image>\nFree OCR.")]))[0] == "<image>\nFree OCR."


def test_another_number_of_slots_is_text() -> None:
    assert prompt(("user", [IMAGE, text("<image> <image>")]))[0] == f"<image>\n{QUOTED_SLOT} {QUOTED_SLOT}"
    assert prompt(("user", [text("an <image> tag"), IMAGE, BARE]))[0] == f"<image>\n<image>\nan {QUOTED_SLOT} tag"


def test_history_collapses_to_the_latest_user_message_and_system_messages_stay_apart() -> None:
    collapsed = collapse(
        ("system", "Be exact."),
        ("user", [IMAGE, text("old")]),
        ("assistant", "old answer"),
        ("developer", [text("And brief.")]),
        ("user", [BARE, text("new")]),
        ("tool", "noise"),
    )
    assert (collapsed.words(), collapsed.image_urls) == ("new", ["data:,b"])
    assert collapsed.words(system=True) == "Be exact.\nAnd brief.\nnew"


def test_user_messages_that_follow_each_other_count_as_one() -> None:
    assert prompt(("user", [IMAGE]), ("user", "Read"), ("system", "x"), ("user", "this.")) == (
        "<image>\nRead\nthis.",
        ["data:,a"],
    )
    assert prompt(("user", "old"), ("assistant", "x"), ("user", "Read this."), ("user", [IMAGE, BARE])) == (
        "<image>\n<image>\nRead this.",
        ["data:,a", "data:,b"],
    )


def test_a_message_without_a_picture_is_about_the_newest_pictures_before_it() -> None:
    assert prompt(
        ("user", [IMAGE, text("old")]),
        ("assistant", "x"),
        ("user", [BARE, INPUT]),
        ("assistant", "y"),
        ("user", "new"),
    ) == ("<image>\n<image>\nnew", ["data:,b", "data:,c"])


def test_pictures_of_tools_count() -> None:
    assert prompt(("user", "Read it."), ("assistant", None), ("tool", [text("done"), IMAGE])) == (
        "<image>\nRead it.",
        ["data:,a"],
    )
    assert prompt(("user", [BARE, text("Read it.")]), ("assistant", None), ("tool", [IMAGE]), ("user", "Now.")) == (
        "<image>\nNow.",
        ["data:,a"],
    )


def test_unknown_parts_are_accepted_in_history_only() -> None:
    odd = {"type": "input_audio", "input_audio": {"data": "x"}}
    assert prompt(("user", [odd]), ("assistant", None), ("user", "hi"))[0] == "hi"
    with pytest.raises(InvalidInput, match="'input_audio' are not supported"):
        prompt(("user", [odd]))


def test_files_take_a_slot_in_either_form() -> None:
    for part in (FILE, {"type": "input_file", "file_data": "data:,f"}):
        collapsed = collapse(("user", [part, text("Free OCR.")]))
        assert (collapsed.words(), collapsed.files, collapsed.images) == ("Free OCR.", ["data:,f"], 1)


ATTACHED = '<attached_files>\n<file type="image" url="1" name="p.png"/>\n</attached_files>\n\n'
RETRIEVED = (
    "### Task:\nRespond to the user query using the provided context, incorporating inline citations in the format "
    '[id] **only when the <source> tag includes an explicit id attribute**.\n\n### Output:\nA clear response.\n\n'
    '<context>\n<source id="1" name="a.pdf">old words</source>\n</context>\n\n'
)  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([" \n"], ""),
        ([ATTACHED], ""),
        ([ATTACHED, "Read."], "Read."),
        ([f"{ATTACHED}Read."], "Read."),
        ([f"{RETRIEVED}Read.", ATTACHED], "Read."),
        ([RETRIEVED], ""),
        ([f"{RETRIEVED}<user_query>\nRead.\n</user_query>"], "Read."),
        (["<context>\nnoise\n</context>\nRead."], "Read."),
        (["an <attached_files> without its end"], "an <attached_files> without its end"),
        (["<notes lang='en'>mine</notes> Read.", "<notesheet>kept</notesheet>"], "Read.\n<notesheet>kept</notesheet>"),
    ],
)
def test_what_clients_wrap_around_the_words_is_dropped(parts: list[str], words: str) -> None:
    assert collapse(("user", [IMAGE, *map(text, parts)])).words(["notes"]) == words


def test_a_text_of_many_wrappers_without_an_end_takes_no_long_time() -> None:
    hostile = "<attached_files><context><source>" * 20_000
    assert collapse(("user", hostile)).words() == hostile  # a quadratic search would not come back within the hour


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


def responses(items: list[dict[str, Any]], instructions: str | None = None) -> Prompt:
    return from_responses([ResponseItem.model_validate(item) for item in items], instructions)


def test_responses_take_a_string_or_items_and_instructions() -> None:
    collapsed = from_responses("hello", "Be exact.")
    assert (collapsed.words(), collapsed.words(system=True)) == ("hello", "Be exact.\nhello")
    collapsed = responses(
        [
            {"type": "message", "role": "user", "content": "old"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "said"}]},
            {"type": "reasoning", "summary": []},
            {"role": "user", "content": [text("new", "input_text"), INPUT]},
        ]
    )
    assert (collapsed.words(), collapsed.image_urls) == ("new", ["data:,c"])


def test_what_a_tool_gave_to_responses_counts() -> None:
    asked = {"role": "user", "content": "Read it."}
    call = {"type": "function_call", "call_id": "1", "name": "scan", "arguments": "{}"}
    given = {"type": "function_call_output", "call_id": "1", "output": [INPUT]}
    screen = {"type": "computer_call_output", "call_id": "2", "output": {"type": "computer_screenshot"}}
    collapsed = responses([asked, call, given, screen])
    assert (collapsed.words(), collapsed.image_urls) == ("Read it.", ["data:,c"])
