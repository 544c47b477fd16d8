"""Results of a benchmark, made up."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tools.bench.plan import Plan
from tools.bench.report import Results
from tools.bench.turns import Series


def results(*series: Series) -> Results:
    return Results({"cpu": "A", "cores": 2, "memory_gb": 8}, {"numpy": "2"}, "2026-01-02T03:04:05", {}, list(series))


def series(contender: str, part: str = "decode", value: int = 512, samples: tuple[float, ...] = (1.0,)) -> Series:
    metric = "s" if part in ("vision", "page") else "tokens/s"
    case = next(case for case in Plan().cases(part) if case.value == value)  # type: ignore[arg-type]
    return Series(contender, part, case.label, value, metric, list(samples))
