"""The table of character error rates by dtype."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tools.accuracy import rows
from tools.train_tiny.evaluate import Score


def test_each_dtype_is_held_against_the_first_in_points_of_all_pages() -> None:
    def found(errors: int) -> dict[str, Score]:
        return {"clean": Score(2, 1000, errors, 0), "blank": Score(2, 0, 1, 1), "all": Score(2, 1000, errors, 0)}

    table = list(rows({"f32": found(50), "q8": found(54), "q4+q8": found(59), "f16": found(49)}))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0] == ["dtype", "clean", "blank", "all", "points against f32", "bar"]
    assert cells[2] == ["f32", "5.00%", "1 read", "5.00%", "+0.00", ""]
    assert cells[3] == ["q8", "5.40%", "1 read", "5.40%", "+0.40", "<= 0.3 MISSED"]
    assert cells[4] == ["q4+q8", "5.90%", "1 read", "5.90%", "+0.90", "<= 1.0 met"]
    assert cells[5] == ["f16", "4.90%", "1 read", "4.90%", "-0.10", ""]
