"""Tables as workbooks and CSV, read by openpyxl and the standard library."""

from __future__ import annotations

import csv
import io

import openpyxl
import pytest

from models.blocks import Block
from server.writers import PageResult
from tests.writers.made import done, written

MERGED = '<table><tr><th colspan="2">wide</th><th rowspan="2">tall</th></tr><tr><td>007</td><td>=1+1</td></tr></table>'
PIPES = "| a | **b** |\n| --- | --- |\n| - 5 | 1. |"


def pages() -> list[PageResult]:
    tables = (Block("table", MERGED), Block("text", "between"), Block("table", PIPES))
    return [done(1, "x", blocks=tables), PageResult(2, "failed", "x"), done(3, f"{PIPES}\n\nwords")]


def book(*results: PageResult) -> openpyxl.Workbook:
    return openpyxl.load_workbook(io.BytesIO(written("xlsx", results)))


def test_each_table_is_a_sheet_and_merged_cells_are_merged() -> None:
    found = book(*pages())
    assert found.sheetnames == ["page 1, table 1", "page 1, table 2", "page 3, table 1"]
    first = found.worksheets[0]
    assert {str(one) for one in first.merged_cells.ranges} == {"A1:B1", "C1:C2"}
    assert [[cell.value for cell in row] for row in first.iter_rows()] == [
        ["wide", None, "tall"],
        ["007", "=1+1", None],
    ]
    assert [[cell.value for cell in row] for row in found.worksheets[1].iter_rows()] == [["a", "b"], ["- 5", "1."]]


def test_what_begins_like_a_formula_is_text() -> None:
    assert book(*pages()).worksheets[0]["B2"].data_type == "s"


def test_a_document_without_tables_is_a_workbook_that_says_so() -> None:
    assert book(done(1, "words")).sheetnames == ["no tables"]


def test_csv_has_the_tables_below_each_other() -> None:
    rows = list(csv.reader(io.StringIO(written("csv", pages()).decode())))
    first, other = [["wide", "", "tall"], ["007", "'=1+1", ""]], [["a", "b"], ["- 5", "1."]]
    assert rows == [*first, [], *other, [], *other]


@pytest.mark.parametrize(("cell", "harmless"), [
    ("=cmd|x", False), ("@SUM(A1)", False), ("+cmd|x", False), ("-2+3+cmd|x", False), ("-5", True), ("+49 30 12", True),
    ("a=b", True), ("-2+3", False), ("+1*2", False), ("\uff1d1+1", False), ("-1.234 €", True), ("- none", False),
])  # fmt: skip
def test_csv_gives_spreadsheets_nothing_to_compute(cell: str, harmless: bool) -> None:
    text = written("csv", [done(1, "x", blocks=(Block("table", f"<table><tr><td>{cell}</td></tr></table>"),))]).decode()
    assert text == (f"{cell}\n" if harmless else f"'{cell}\n")


def test_spans_that_overlap_or_are_too_wide_make_no_broken_workbook() -> None:
    odd = '<table><tr><td rowspan="2">a</td><td>b</td></tr><tr><td colspan="99999999">c</td></tr></table>'
    merged = book(done(1, "x", blocks=(Block("table", odd),))).worksheets[0].merged_cells.ranges
    cells = [cell for one in merged for cell in one.cells]
    assert len(cells) == len(set(cells))


def test_a_cell_that_is_too_long_for_a_spreadsheet_is_cut_and_said(caplog: pytest.LogCaptureFixture) -> None:
    table = Block("table", f"<table><tr><td>{'y' * 40_000}</td></tr></table>")
    assert len(book(done(7, "x", blocks=(table,))).worksheets[0]["A1"].value) == 32_767
    assert "page 7: a cell of 40000 characters is cut to 32767" in caplog.text
