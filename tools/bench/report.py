"""Results: Markdown tables for people, JSON for ``compare``, and the bars of the project beside the ratios."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from .plan import MAIN_METRIC, PARTS
from .turns import BenchError, Series, advantage

FORMAT = 1
_PACKAGES = ("ocr-onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "torch", "transformers", "gguf")


@dataclass
class Results:
    """One run of the benchmark."""

    machine: dict[str, Any]
    versions: dict[str, str]
    date: str
    options: dict[str, Any]
    series: list[Series] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write JSON; the file is replaced whole."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what ``save`` wrote.

        Raises
        ------
        BenchError
            for a file that is none.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise BenchError(f"{path} has another format than {FORMAT}; measure again")
            return cls(**{**values, "series": [Series(**one) for one in values["series"]]})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchError(f"{path} is no result of this benchmark: {error}") from error


def merge(runs: Sequence[Results]) -> Results:
    """Several runs as one; what was measured in different runs was not measured in turns."""
    first, *others = runs
    series = list(first.series)
    for run in others:
        offset = 1 + max((one.group for one in series), default=0)
        series += [replace(one, group=one.group + offset) for one in run.series]
    found = {name: version for run in runs for name, version in run.versions.items()}
    return replace(first, versions=found, series=series, notes=[note for run in runs for note in run.notes])


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": _cpu_model(),
        "card": _card(),
        "cores": psutil.cpu_count(logical=False),
        "threads": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Installed versions of what is measured."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def today() -> str:
    """UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _card() -> str | None:
    """NVIDIA's card and its driver, where there is one."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return found.splitlines()[0] if found.strip() else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split("\t: ", 1) for line in map(str.strip, lines) if "\t: " in line)
    facts = {name.strip(): value for name, value in facts.items()}
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else name


# Bars: what the project has set itself, as ratios (issue 4).


@dataclass(frozen=True)
class Bar:
    """Ours must be at least ``minimum`` times as good as the peer. ``values`` are the cases', () for all."""

    part: str
    ours: str
    peer: str
    minimum: float
    values: tuple[int, ...] = ()


BARS = (
    Bar("decode", "ours q4", "llama.cpp Q4_0", 1.0, (512,)),
    Bar("decode", "ours q8", "llama.cpp Q8_0", 1.2, (512,)),
    Bar("prefill", "ours q4", "llama.cpp Q4_0", 1.5, (900,)),
    Bar("prefill", "ours q8", "llama.cpp Q8_0", 1.8, (900,)),
    Bar("page", "ours q4", "transformers bf16", 4.0),
    Bar("page", "ours q8", "llama.cpp Q8_0", 2.0),
    Bar("vision", "ours vision f32", "transformers f32", 1.4, (640, 1024)),
    Bar("vision", "ours vision q8", "transformers bf16", 1.3, (640, 1024)),
    Bar("vision", "ours vision q8", "transformers f32", 2.3, (640, 1024)),
)


# What the project has set itself without a peer: medians that must not be exceeded. ``ours``: "" for every export.
@dataclass(frozen=True)
class Limit:
    part: str
    ours: str
    metric: str
    maximum: float


LIMITS = (
    Limit("export", "ours q4", "s", 600),
    Limit("export", "ours q4", "GB peak", 3.0),
    Limit("export", "ours q4", "GB on disk", 2.0),
    Limit("export", "ours q8", "GB on disk", 4.0),
    Limit("load", "ours q4", "s", 8.0),
    Limit("load", "ours q4", "GB resident", 3.5),
    Limit("overhead", "", "% outside ONNX Runtime", 5.0),
    Limit("sharing", "", "% of its pace lost", 65.0),
    Limit("sharing", "", "s to cancel", 0.5),
    Limit("sharing", "", "s to the deadline's end", 0.5),
    Limit("sharing", "", "passes of the other", 3.0),
)
BATCH_BAR = ("ours q4", 8, 1.8)  # all tokens of 8 rows against 1 row's

_RIVALS = {"llama.cpp Q4_0": {"ours q4"}, "llama.cpp Q8_0": {"ours q8"}}


def rivals(ours: str, peer: str) -> bool:
    """Whether the two are compared: llama.cpp's quantisations with ours of the same bits, transformers with all."""
    if not ours.startswith("ours ") or peer.startswith("ours "):
        return False
    return ours in _RIVALS[peer] if peer in _RIVALS else True


@dataclass(frozen=True)
class Ratio:
    """Two contenders at one case. ``medians`` and ``bests``: how many times as good ours is."""

    ours: Series
    peer: Series
    medians: float
    bests: float
    bar: float | None


def ratios(series: Sequence[Series]) -> Iterator[Ratio]:
    """All comparisons in the main metric of each part, and 2 and more rows against 1.

    Who was measured in several groups is compared within the peer's group; only where there is none, across groups.
    """
    main = [one for one in series if one.metric == MAIN_METRIC.get(one.part)]  # type: ignore[call-overload]
    for peer in main:
        facing = [
            one
            for one in main
            if (peer.part, peer.case) == (one.part, one.case) and rivals(one.contender, peer.contender)
        ]
        beside = {one.contender for one in facing if one.group == peer.group}
        for ours in facing:
            if ours.group == peer.group or ours.contender not in beside:
                bar = next((one.minimum for one in BARS if _is_about(one, ours, peer)), None)
                yield _ratio(ours, peer, bar)
    for ours in main:
        if ours.part == "batch" and ours.value > 1:
            single = [one for one in main if (one.part, one.contender, one.value) == ("batch", ours.contender, 1)]
            for one in single[:1]:
                wanted = BATCH_BAR[2] if (ours.contender, ours.value) == BATCH_BAR[:2] else None
                yield _ratio(ours, one, wanted)


def _ratio(ours: Series, peer: Series, bar: float | None) -> Ratio:
    medians = advantage(ours.median, peer.median, ours.metric)
    return Ratio(ours, peer, medians, advantage(ours.best, peer.best, ours.metric), bar)


def _is_about(bar: Bar, ours: Series, peer: Series) -> bool:
    return (bar.part, bar.ours, bar.peer) == (ours.part, ours.contender, peer.contender) and (
        not bar.values or ours.value in bar.values
    )


# Tables.


def render(results: Results) -> str:
    """The whole report as Markdown."""
    machine_ = results.machine
    about = (
        (f"{machine_['card']}; " if machine_.get("card") else "")
        + f"{machine_['cpu']}, {machine_['cores']} cores, {machine_['memory_gb']} GB; "
        + ", ".join(f"{name} {version}" for name, version in results.versions.items())
        + f"; {results.date[:10]}"
    )
    pieces = [about]
    ordered = sorted(results.series, key=lambda one: PARTS.index(one.part))
    rows = [
        [
            one.part, one.case, one.contender, _number(one.median), _number(one.best), one.metric,
            f"{len(one.samples)}", f"{one.spread:.0%}",
        ]
        for one in ordered
    ]  # fmt: skip
    pieces.append(table(["part", "case", "who", "median", "best", "unit", "samples", "spread"], rows))
    compared = [
        [
            one.ours.part,
            one.ours.case,
            one.ours.contender,
            one.peer.contender if one.ours.case == one.peer.case else f"the same, {one.peer.case}",
            f"{one.medians:.2f}",
            f"{one.bests:.2f}",
            "" if one.bar is None else f">= {one.bar:g} {'met' if one.medians >= one.bar else 'MISSED'}",
            "yes" if one.ours.group == one.peer.group else "no",
        ]
        for one in ratios(ordered)
    ]
    if compared:
        header = ["part", "case", "who", "times as good as", "by medians", "by bests", "bar", "in turns"]
        pieces.append(table(header, compared))
    if limited := list(_limited(ordered)):
        pieces.append(table(["part", "case", "who", "median", "unit", "limit"], limited))
    if results.notes:
        pieces.append("\n".join(f"- {note}" for note in results.notes))
    return "\n\n".join(pieces)


def _limited(series: Sequence[Series]) -> Iterator[list[str]]:
    """Rows of the metrics that have a limit (``LIMITS``), with whether the limit is met."""
    for one in series:
        for limit in LIMITS:
            if (limit.part, limit.metric) == (one.part, one.metric) and limit.ours in ("", one.contender):
                verdict = f"<= {limit.maximum:g} {'met' if one.median <= limit.maximum else 'MISSED'}"
                yield [one.part, one.case, one.contender, _number(one.median), one.metric, verdict]


def compare(before: Results, after: Results) -> str:
    """What changed between two runs, by the medians of what both have measured."""
    pieces = []
    if before.machine.get("cpu") != after.machine.get("cpu"):
        pieces.append(
            f"The machines differ ({before.machine.get('cpu')}; {after.machine.get('cpu')}): the ratios mean little."
        )
    old = {(one.part, one.case, one.contender, one.metric): one for one in before.series}
    rows = []
    for one in after.series:
        previous = old.pop((one.part, one.case, one.contender, one.metric), None)
        if previous is None:
            continue
        ratio = advantage(one.median, previous.median, one.metric)
        noise = max(one.spread, previous.spread)
        verdict = "" if abs(ratio - 1) <= noise else ("better" if ratio > 1 else "WORSE")
        rows.append([
            one.part, one.case, one.contender, _number(previous.median), _number(one.median), one.metric,
            f"{ratio:.2f}", f"{noise:.0%}", verdict,
        ])  # fmt: skip
    header = ["part", "case", "who", before.date[:10], after.date[:10], "unit", "times as good", "spread", ""]
    pieces.append(table(header, rows) if rows else "The two runs have nothing in common.")
    return "\n\n".join(pieces)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, columns aligned for reading as text too."""
    lines = [list(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]
    padded = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    padded.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in padded)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
