"""Text pieces, stop strings and loops, against the whole text and naive rules."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from runtime.text import LoopDetector, TextStream
from tools.checkpoints import small_tokenizer

SMALL = small_tokenizer()
BYTES = {byte: SMALL.encode(chr(byte), add_special_tokens=False).ids[0] for byte in range(128)}
# Bytes that begin, continue and break UTF-8 characters, blanks, letters, and special tokens.
TRICKY = [
    *(SMALL.token_to_id(character) for character in ("ä", "¸", "Ń", "ð", "Ł", "ĺ", "Ģ", "ÿ", "Ċ", "Ġ")),
    *(BYTES[ord(character)] for character in "ab< "),
    SMALL.token_to_id("<image>"), SMALL.token_to_id("<|ref|>"), SMALL.token_to_id("<td>"), 1,
]  # fmt: skip


@pytest.fixture(scope="module")
def real(real_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_file(str(real_tokenizer))


def pieces_of(tokenizer: Tokenizer, tokens: list[int], stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    """As the engine does: no token is added after a stop string was found."""
    stream = TextStream(tokenizer, stops)
    pieces = []
    for token in tokens:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream


def encoded(text: str) -> list[int]:
    return SMALL.encode(text, add_special_tokens=False).ids


@given(st.lists(st.sampled_from(TRICKY) | st.integers(0, SMALL.get_vocab_size() - 1), max_size=40))
def test_the_pieces_joined_are_the_decoded_text_without_blanks_around_it(tokens) -> None:
    pieces, _ = pieces_of(SMALL, tokens)
    assert "".join(pieces) == SMALL.decode(tokens, skip_special_tokens=False).strip()


@given(data=st.data())
@settings(max_examples=150)
def test_the_pieces_joined_are_the_decoded_text_of_the_real_tokenizer(real, data) -> None:
    byte_tokens = [real.token_to_id(c) for c in ("ä", "¸", "Ń", "ð", "Ł", "ĺ", "Ģ", "ÿ", "Ċ", "Ġ")]
    tokens = data.draw(
        st.lists(st.sampled_from(byte_tokens) | st.integers(0, 999) | st.integers(0, 128826), max_size=40)
    )
    pieces, _ = pieces_of(real, tokens)
    assert "".join(pieces) == real.decode(tokens, skip_special_tokens=False).strip()


@given(st.text(max_size=40))
def test_text_of_any_script_comes_back_byte_by_byte(text) -> None:
    pieces, _ = pieces_of(SMALL, encoded(text))
    assert "".join(pieces) == text.strip()


JUNK = [*TRICKY[:8], *encoded("文🙂\N{REPLACEMENT CHARACTER}")]  # bytes of characters that are rarely whole


@given(st.lists(st.sampled_from(JUNK), max_size=200), st.integers(0, 3), st.sampled_from([[], encoded(" a文")]))
@settings(max_examples=300)
def test_bytes_that_are_no_characters_come_as_the_whole_text_has_them_however_many_there_are(unit, times, end) -> None:
    tokens = unit * times + end
    pieces, stream = pieces_of(SMALL, tokens)
    assert "".join(pieces) == SMALL.decode(tokens, skip_special_tokens=False).strip()
    assert len(stream.incomplete) <= 16 + 4


@pytest.mark.parametrize("unit", ["ð", "ä", "¸", "ðŁ", "ä¸", "ðŁĺ", "ä¸¸"])
def test_incomplete_bytes_are_not_gone_through_again_and_again(unit) -> None:
    tokens = [SMALL.token_to_id(character) for character in unit] * 500
    stream = TextStream(SMALL)
    text = "".join(stream.add(token) for token in tokens)
    assert len(text) >= 480, "they are held until the answer ends"
    assert text + stream.finish() == SMALL.decode(tokens)


def test_a_character_comes_in_one_piece_when_its_last_byte_does() -> None:
    pieces, _ = pieces_of(SMALL, encoded("a文🙂b"))
    assert pieces == ["a", "", "", "文", "", "", "", "🙂", "b", ""]


def test_blanks_inside_come_with_the_text_after_them_and_blanks_at_the_ends_never() -> None:
    pieces, _ = pieces_of(SMALL, encoded(" \n a \n b \n"))
    assert pieces == ["", "", "", "a", "", "", "", " \n b", "", "", ""]


def test_special_tokens_are_kept() -> None:
    pieces, _ = pieces_of(SMALL, encoded("<|ref|>x<|/ref|>"))
    assert pieces == ["<|ref|>", "x", "<|/ref|>", ""]


def first_completed(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the stop string begins that is complete first; of several complete at once, the longest."""
    for end in range(1, len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return min(begins)
    return None


@given(
    text=st.text(alphabet="ab \nä", max_size=24),
    stops=st.lists(st.text(alphabet="ab \nä", min_size=1, max_size=4), max_size=3).map(tuple),
)
@settings(max_examples=400)
def test_the_text_ends_before_the_first_stop_string_wherever_the_tokens_are_cut(text, stops) -> None:
    """The answer has no blanks before it, so stop strings count from its first character on."""
    text = text.lstrip()
    at = first_completed(text, stops)
    pieces, stream = pieces_of(SMALL, encoded(text), stops)
    assert stream.stopped is (at is not None)
    assert "".join(pieces) == (text if at is None else text[:at]).strip()


@given(data=st.data())
@settings(max_examples=200)
def test_the_cut_of_the_tokens_makes_no_difference_to_where_the_text_stops(data) -> None:
    """Tokens of several characters, as merges make them."""
    text = data.draw(st.text(alphabet="abc ", max_size=20)).lstrip()
    stops = tuple(data.draw(st.lists(st.text(alphabet="abc ", min_size=1, max_size=4), min_size=1, max_size=3)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    stream = TextStream(SMALL, stops)
    out = ""
    for begin, end in pairwise(cuts):
        out += stream.release(text[begin:end])
    out += stream.finish()
    at = first_completed(text, stops)
    assert out == (text if at is None else text[:at]).strip()


def test_the_beginning_of_a_stop_string_is_held_back_and_released_when_it_does_not_go_on() -> None:
    pieces, stream = pieces_of(SMALL, encoded("xENDyEN"), ("ENDE",))
    assert pieces == ["x", "", "", "", "ENDy", "", "", "EN"]
    assert not stream.stopped


def test_of_a_stop_string_nothing_leaks_and_nothing_comes_after_it() -> None:
    stream = TextStream(SMALL, ("</td>", "STOP"))
    pieces = [stream.add(token) for token in encoded("cell STO STOP more")]
    assert stream.stopped
    assert "".join([*pieces, stream.finish()]) == "cell STO"


def test_a_stop_string_may_be_a_special_token_or_end_in_one() -> None:
    for stops in (("</td>",), ("x</td>",)):
        pieces, stream = pieces_of(SMALL, encoded("<td>x</td>y"), stops)
        assert stream.stopped
        assert "".join(pieces) == ("<td>x" if stops == ("</td>",) else "<td>")


def repeats_by_rescan(tokens: list[int], longest: int, minimum: int, repeats: int) -> bool:
    """Whether, for some period, the tail that equals itself one period earlier is long enough."""
    for period in range(1, longest + 1):
        run = 0
        while run < len(tokens) - period and tokens[-1 - run] == tokens[-1 - run - period]:
            run += 1
        if run >= max(minimum, repeats * period):
            return True
    return False


@given(
    tokens=st.lists(st.integers(0, 2), max_size=80),
    longest=st.integers(1, 6),
    minimum=st.integers(1, 12),
    repeats=st.integers(1, 4),
)
def test_a_loop_is_seen_exactly_when_a_rescan_sees_it(tokens, longest, minimum, repeats) -> None:
    detector = LoopDetector(longest, minimum, repeats)
    for length in range(1, len(tokens) + 1):
        assert detector.add(tokens[length - 1]) is repeats_by_rescan(tokens[:length], longest, minimum, repeats)


@pytest.mark.parametrize("period", [*range(1, 129, 9), 127, 128, 129, 300, 511, 512])
def test_a_loop_of_every_period_up_to_512_ends_after_eight_repetitions_and_128_tokens(period) -> None:
    detector = LoopDetector()
    start = [100_000 + i for i in range(300)]
    assert not any(detector.add(token) for token in start)
    seen = 0
    while not detector.add(seen % period):
        seen += 1
    assert seen + 1 == period + max(128, 8 * period)


def test_a_unit_longer_than_the_longest_period_is_left_alone() -> None:
    detector = LoopDetector()
    assert not any(detector.add(i % 513) for i in range(513 * 40))


def test_text_that_never_repeats_is_never_a_loop() -> None:
    detector = LoopDetector()
    assert not any(detector.add(token) for token in range(3000))


def test_a_table_with_many_empty_cells_is_no_loop() -> None:
    """Rows of 30 equal cells that each begin with another number."""
    detector = LoopDetector()
    table = [token for row in range(60) for token in [1000 + row, *[7, 8] * 30]]
    assert not any(detector.add(token) for token in table)


def with_text(tokenizer: Tokenizer) -> LoopDetector:
    return LoopDetector(decode=lambda tokens: tokenizer.decode(tokens, skip_special_tokens=False))


def ended_after(tokenizer: Tokenizer, text: str) -> int | None:
    """Tokens until the text counts as a loop; None when it does not."""
    detector = with_text(tokenizer)
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    return next((count for count, token in enumerate(tokens, 1) if detector.add(token)), None)


@pytest.mark.parametrize(
    "row",
    [
        "<tr>" + "<td></td>" * 6 + "</tr>\n",
        "<tr>" + "<td></td>" * 6 + "</tr>",
        "<tr>" + "<td> </td>" * 6 + "</tr>\n",
        '<tr><td colspan="2"></td>' + "<td></td>" * 4 + "</tr>\n",
        "|" + "  |" * 6 + "\n",
    ],
)
@pytest.mark.parametrize("real_one", [True, False])
def test_a_blank_form_of_40_rows_and_six_columns_is_no_loop(row: str, real_one: bool, real: Tokenizer) -> None:
    tokenizer = real if real_one else SMALL  # which writes letter by letter
    rows = 40 if real_one else 20  # of the small one's, so many are some 1000 tokens too
    assert ended_after(tokenizer, "<table>" + row * rows) is None


@pytest.mark.parametrize(
    "unit",
    ["the same words again. ", "<tr><td>x</td><td></td></tr>", "| 7 | |\n", "<br>", "x", "....", "\n \n", "| "],
)
def test_a_real_loop_ends_within_300_tokens(unit: str, real: Tokenizer) -> None:
    for tokenizer in (real, SMALL):
        detector = with_text(tokenizer)
        tokens = tokenizer.encode(unit, add_special_tokens=False).ids
        ended = next(count for count in range(1, 3000) if detector.add(tokens[count % len(tokens)]))
        assert ended <= max(300, 9 * len(tokens)), ended


def test_empty_cells_without_an_end_are_ended_too(real: Tokenizer) -> None:
    assert 2000 <= (ended_after(real, "<td></td>" * 2000) or 0) <= 2300
