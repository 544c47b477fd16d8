"""All tables of a document: as an Excel workbook with a sheet for each, or one below the other as CSV.

Texts stay texts: ``007`` and ``1.10`` are not converted to numbers, and text that begins like a formula must not be
computed.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

from .material import Material
from .plain import plain_cell
from .result import PageResult
from .tables import PlacedCell, cells_of, rows_of
from .text import TextFile

log = logging.getLogger(__name__)

# Beginnings of text that spreadsheets compute when they open CSV. A sign before a number is harmless. Some take
# signs of full width, too.
_FORMULA = re.compile(r"[=@\uff1d\uff20]|[+\uff0b\uff0d-](?=.*(?:[A-Za-z(|!]|\d\s*[-+*/^&<>=]))")
_LONGEST_CELL = 32_767  # characters of a cell in Excel


def _tables(result: PageResult) -> Iterator[Sequence[PlacedCell[str]]]:
    for block in result.blocks:
        if block.kind == "table" and (cells := cells_of(block.text)):
            yield [replace(cell, what=plain_cell(cell.what)) for cell in cells]


class CsvWriter:
    """Writes tables separated by empty lines. A merged cell's text is in the first of its places."""

    def __init__(self, file: TextFile, material: Material) -> None:
        self._file, self._rows = file, csv.writer(file, lineterminator="\n")
        self._first = True

    def begin(self, head: Mapping[str, Any]) -> None: ...

    def page(self, result: PageResult) -> None:
        for cells in _tables(result):
            if not self._first:
                self._file.write("\n")
            self._first = False
            rows = rows_of(cells)
            width = max(map(len, rows))
            for row in rows:
                self._rows.writerow([*map(_harmless, row), *[""] * (width - len(row))])

    def end(self) -> None:
        self._file.flush()


def _harmless(text: str) -> str:
    """The text, after an apostrophe if a spreadsheet would take it for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


class XlsxWriter:
    """Writes a sheet for each table, named by page and number; merged cells are merged."""

    def __init__(self, file: BinaryIO, material: Material) -> None:
        import openpyxl  # of the extra ``formats``, which CSV does not need

        self._file, self._book = file, openpyxl.Workbook()
        self._empty = self._book.active

    def begin(self, head: Mapping[str, Any]) -> None: ...

    def page(self, result: PageResult) -> None:
        for number, cells in enumerate(_tables(result), 1):
            sheet = self._book.create_sheet(f"page {result.page}, table {number}")
            for one in cells:
                cell = sheet.cell(one.row + 1, one.column + 1)
                cell.value = one.what
                if len(one.what) > _LONGEST_CELL:
                    log.warning(
                        "page %d: a cell of %d characters is cut to %d, the most that a spreadsheet's cell holds",
                        result.page, len(one.what), _LONGEST_CELL,
                    )  # fmt: skip
                cell.data_type = "s"
                if one.height > 1 or one.width > 1:
                    sheet.merge_cells(
                        start_row=one.row + 1, start_column=one.column + 1, end_row=one.row + one.height,
                        end_column=one.column + one.width,
                    )  # fmt: skip

    def end(self) -> None:
        if len(self._book.worksheets) > 1 and self._empty is not None:
            self._book.remove(self._empty)
        elif self._empty is not None:
            self._empty.title = "no tables"  # a workbook has at least one sheet
        self._book.save(self._file)
