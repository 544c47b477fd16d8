"""Two readings are compared: by hand-made cases whose figures can be counted, and against other packages that count."""

from __future__ import annotations

import json
import random
from pathlib import Path

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.command import main as program
from server.scores.order import score_order
from server.scores.page import compare_page
from server.scores.tables import score_tables, tables_of
from server.scores.text import score_text

WORDS = st.lists(st.text("abcdefg", min_size=1, max_size=5), min_size=1, max_size=12).map(" ".join)


@given(WORDS, WORDS)
def test_rates_are_those_of_jiwer(truth: str, read: str) -> None:
    score = score_text(truth, read)
    assert score.word_error_rate == pytest.approx(jiwer.wer(truth, read))
    assert score.character_error_rate == pytest.approx(jiwer.cer(truth, read))


def test_blanks_lines_and_composed_accents_do_not_count() -> None:
    assert score_text("caf\u00e9  one\ntwo", "cafe\u0301 one two").wrong_characters == 0


def test_rates_of_many_texts_are_of_all_their_characters() -> None:
    both = score_text("abcd", "abcx") + score_text("ab", "")
    assert both.character_error_rate == pytest.approx(3 / 6)
    assert both.edit_distance == pytest.approx(3 / 6)
    assert score_text("", "").character_error_rate is None


def table(*rows: str, cell: str = "td") -> str:
    cells = ["".join(f"<{cell}>{text}</{cell}>" for text in row.split("|")) for row in rows]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def test_a_table_is_the_same_in_each_of_its_forms() -> None:
    pipes = "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    (one,), (other,) = tables_of(pipes), tables_of(table("a|b", "1|2"))
    (score,) = score_tables([one], [other])
    assert (score.teds, score.structure) == (1.0, 1.0)


def test_similarity_of_tables_is_counted_by_their_nodes() -> None:
    truth = tables_of(table("a|b", "1|2"))
    # 6 nodes: two rows, four cells. A cell with another text costs 1, as does one that is missing.
    (changed,) = score_tables(truth, tables_of(table("a|b", "1|9")))
    assert (changed.teds, changed.structure) == (pytest.approx(1 - 1 / 6), 1.0)
    (missing,) = score_tables(truth, tables_of(table("a|b", "1")))
    assert (missing.teds, missing.structure) == (pytest.approx(1 - 1 / 6), pytest.approx(1 - 1 / 6))


def test_tables_are_paired_by_likeness_and_one_without_partner_scores_nothing() -> None:
    first, second = tables_of(table("a|b", "1|2")), tables_of(table("x|y|z"))
    scores = score_tables([*first, *second], second)
    assert [one.teds for one in scores] == [0.0, 1.0]


def test_spans_are_part_of_a_tables_structure() -> None:
    wide = '<table><tr><td colspan="2">a</td></tr><tr><td>1</td><td>2</td></tr></table>'
    (score,) = score_tables(tables_of(wide), tables_of(wide.replace(' colspan="2"', "")))
    assert score.structure == pytest.approx(1 - 1 / 5)


def test_order_is_the_distance_of_the_pairs_order() -> None:
    blocks = ["the first paragraph", "another thing entirely", "closing words of it"]
    assert score_order(blocks, blocks) == 0.0
    assert score_order(blocks, [blocks[1], blocks[0], blocks[2]]) == pytest.approx(2 / 3)
    assert score_order(blocks, blocks[:2]) == 0.0  # what is missing is the text's to tell
    assert score_order(blocks, []) is None
    assert score_order(blocks, ["zzzz"]) is None


@given(st.permutations(range(6)))
def test_any_order_of_the_same_blocks_scores_between_nothing_and_all(order: list[int]) -> None:
    blocks = [letter * 12 for letter in "abcdef"]
    score = score_order(blocks, [blocks[i] for i in order])
    assert score is not None
    assert 0 <= score <= 1
    assert (score == 0) == (order == sorted(order))


def test_markup_is_no_text() -> None:
    plain = compare_page("# Title\n\nSome **bold** text\n\n- one\n- two", "Title\n\nSome bold text\n\none\n\ntwo")
    assert plain.text.wrong_characters == 0
    cells = compare_page(table("one|two"), "one two")
    assert cells.text.wrong_characters == 0
    assert cells.tables[0].teds == 0.0


def compared(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = program.main(["compare", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def write(folder: Path, **pages: list[str]) -> Path:
    for name, texts in pages.items():
        file = folder / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"pages": [{"markdown": text} for text in texts]}))
    return folder


def test_folders_are_compared_document_by_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "a", one=["abcd", "efgh"], two=["same"], three=["lost"])
    read = write(tmp_path / "b", one=["abcd", "efgx"], two=["same"])
    code, out, err = compared(capsys, truth, read, "--json")
    told = json.loads(out)
    assert code == 1
    assert told["missing"] == ["three"]
    assert "three is missing" in err
    assert told["documents"]["one"]["character_error_rate"] == pytest.approx(1 / 8)
    assert told["total"]["character_error_rate"] == pytest.approx(1 / 12, abs=1e-4)


def test_each_form_of_a_result_can_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.md").write_text("<!-- page 1 -->\n\nfirst\n\n<!-- page 2 -->\n\nsecond\n")
    (tmp_path / "a.txt").write_text("first\n\fsecond\n")
    (tmp_path / "a.jsonl").write_text('{"markdown": "first"}\n{"markdown": "second"}\n')
    for other in ("a.txt", "a.jsonl"):
        code, out, _ = compared(capsys, tmp_path / "a.md", tmp_path / other, "--json")
        assert code == 0
        assert json.loads(out)["total"]["edit_distance"] == 0.0


def test_the_table_for_people_has_a_line_for_each_document_and_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "a", one=["abcd"], two=["same"])
    code, out, _ = compared(capsys, folder, folder)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["document", "CER", "WER", "edit", "TEDS", "TEDS-S", "order"]
    assert lines[-1].split() == ["all", "2", "0.0000", "0.0000", "0.0000", "-", "-", "0.0000"]


@pytest.mark.parametrize(("name", "content"), [("a.json", "{"), ("a.json", "[]"), ("a.jsonl", '{"markdown": 3}')])
def test_a_file_that_is_no_result_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    code, _, err = compared(capsys, tmp_path / name, tmp_path / name)
    assert code == 1
    assert f"{name} is no result" in err


def test_what_is_not_there_or_of_two_kinds_is_a_wrong_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.md").write_text("x")
    assert compared(capsys, tmp_path / "a.md", tmp_path / "b.md")[0] == 2
    assert compared(capsys, tmp_path / "a.md", tmp_path)[0] == 2


def test_a_large_page_is_compared_in_a_moment_of_work() -> None:
    letters = random.Random(1)
    page = "\n\n".join(" ".join(letters.choices(["alpha", "beta", "gamma", "delta"], k=40)) for _ in range(60))
    assert compare_page(page, page).to_json()["reading_order"] == 0.0
