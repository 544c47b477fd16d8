"""Measuring in turns: every contender gets one sample of a case before any contender gets a second one.

Other load on a machine comes and goes within seconds and changes every figure by up to a factor of three. In turns,
such load hits all contenders alike, so that the ratios of medians hold where the figures themselves do not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from .plan import HIGHER_IS_BETTER, KINDS, Case, Kind

_T = TypeVar("_T")

PAUSE = 0.2  # seconds between samples: thread pools of the one before stop spinning
_HEADROOM = 0.92  # of the free memory, for a group of contenders


class BenchError(Exception):
    """A measurement that could not be taken; the message says why and what to do."""


@dataclass(frozen=True)
class Memory:
    """What a contender needs, in bytes."""

    peak: int  # while it loads
    held: int  # afterwards


class Contender(Protocol):
    """One engine with one type of weights."""

    def name(self, kind: Kind) -> str:
        """The contender's name in tables. Two contenders with one name for a kind would measure the same thing."""

    def can(self, case: Case) -> bool:
        """Whether the contender can measure this case."""

    def memory(self, kind: Kind) -> Memory: ...

    def prepare(self, case: Case) -> None:
        """Load what the case needs, where it is not loaded yet, and warm up. Raises ``BenchError``."""

    def sample(self, case: Case) -> Mapping[str, float]:
        """Measure once: values by metric. Raises ``BenchError``."""

    def close(self) -> None:
        """Give the memory back. May be prepared again afterwards."""


@dataclass
class Series:
    """All samples of one metric of one case from one contender."""

    contender: str
    part: str
    case: str
    value: int
    metric: str
    samples: list[float] = field(default_factory=list)
    group: int = 0  # contenders with the same number were measured in turns

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def best(self) -> float:
        return max(self.samples) if self.metric in HIGHER_IS_BETTER else min(self.samples)

    @property
    def spread(self) -> float:
        """Largest sample minus the smallest, as a part of the median."""
        return (max(self.samples) - min(self.samples)) / self.median if self.median else 0.0


def advantage(ours: float, peer: float, metric: str) -> float:
    """How many times as good ours is: above 1 means better, whether more or less of the metric is better."""
    better, worse = (ours, peer) if metric in HIGHER_IS_BETTER else (peer, ours)
    return better / worse if worse else float("inf")


def turn_order(contenders: Sequence[_T], turn: int) -> list[_T]:
    """Who is measured when: the first of one round is the last of the next, so that nobody is always first."""
    shift = turn % len(contenders) if contenders else 0
    return [*contenders[shift:], *contenders[:shift]]


def groups_in_memory(
    contenders: Sequence[Contender], kind: Kind, rivals: Callable[[str, str], bool], available: int
) -> Iterator[list[Contender]]:
    """Split contenders into groups that fit into ``available`` bytes together.

    All in one group where possible; otherwise a group for each peer with its rivals among ours. A contender that fits
    into no group is a group by itself.
    """
    if _fits(contenders, kind, available):
        yield list(contenders)
        return
    placed: set[int] = set()
    for peer in contenders:
        rivalling = [one for one in contenders if rivals(one.name(kind), peer.name(kind))]
        group = [*rivalling, peer]
        if rivalling and _fits(group, kind, available):
            placed |= {id(one) for one in group}
            yield group
    for one in contenders:
        if id(one) not in placed:
            yield [one]


def _fits(group: Sequence[Contender], kind: Kind, available: int) -> bool:
    """Whether all can be loaded one after the other, the largest peak first, and stay."""
    needs = [one.memory(kind) for one in group]
    held = 0
    for need in sorted(needs, key=lambda need: need.held - need.peak):
        if held + need.peak > available * _HEADROOM:
            return False
        held += need.held
    return held <= available * _HEADROOM


def measure(
    group: Sequence[Contender], cases: Sequence[Case], rounds: int, tell: Callable[[str], None], *, number: int = 0
) -> list[Series]:
    """Measure a group: in each round every case, and in each case every contender that has it.

    number : of the group, for its series. A contender that fails a case is left out of that case from then on, and
    ``tell`` gets the reason.
    """
    series: dict[tuple[str, Case, str], Series] = {}
    out: set[tuple[int, Case]] = set()
    by_peak = sorted(group, key=lambda one: _excess(one, cases), reverse=True)
    for turn in range(-1, rounds):  # turn -1 loads and warms up
        for case in cases:
            for one in by_peak if turn < 0 else turn_order(group, turn):
                if not one.can(case) or (id(one), case) in out:
                    continue
                name = one.name(KINDS[case.part]) if case.part in KINDS else one.name("page")
                what = f"{case.part} {case.label} {name}".replace("  ", " ")
                try:
                    if turn < 0:
                        tell(f"prepare {what}")
                        one.prepare(case)
                        continue
                    time.sleep(PAUSE)
                    values = one.sample(case)
                except BenchError as error:
                    out.add((id(one), case))
                    tell(f"NOT MEASURED {what}: {error}")
                    continue
                shown = ", ".join(f"{value:.4g} {metric}" for metric, value in values.items())
                tell(f"round {turn + 1}/{rounds} {what}: {shown}")
                for metric, value in values.items():
                    key = (name, case, metric)
                    if key not in series:
                        series[key] = Series(name, case.part, case.label, case.value, metric, group=number)
                    series[key].samples.append(value)
    return list(series.values())


def _excess(one: Contender, cases: Sequence[Case]) -> int:
    kinds = {KINDS[case.part] for case in cases if case.part in KINDS}
    return max((one.memory(kind).peak - one.memory(kind).held for kind in kinds), default=0)
