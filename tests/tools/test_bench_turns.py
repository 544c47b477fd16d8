"""The benchmark's turns and statistics: who is measured when, and what counts as faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

pytest.importorskip("torch")

from tests.tools.bench_results import series
from tools.bench.plan import Case, Kind
from tools.bench.report import ratios, rivals
from tools.bench.turns import BenchError, Memory, advantage, groups_in_memory, measure, turn_order


class Fake:
    """A contender that notes when it is asked, and answers with rising values."""

    def __init__(self, name: str, log: list[str], size: int = 1, fails: tuple[int, ...] = ()) -> None:
        self._name, self._log, self._size, self._fails = name, log, size, fails
        self._value = 0.0

    def name(self, kind: Kind) -> str:
        return self._name

    def can(self, case: Case) -> bool:
        return case.value < 100

    def memory(self, kind: Kind) -> Memory:
        return Memory(self._size, self._size)

    def prepare(self, case: Case) -> None:
        self._log.append(f"prepare {self._name}{case.value}")

    def sample(self, case: Case) -> Mapping[str, float]:
        self._log.append(f"{self._name}{case.value}")
        if case.value in self._fails:
            raise BenchError("no luck")
        self._value += 1
        return {"tokens/s": self._value}

    def close(self) -> None:
        pass


# Turns.


def test_who_starts_changes_from_round_to_round() -> None:
    assert [turn_order("abc", turn) for turn in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_every_contender_is_measured_once_before_any_is_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.bench.turns.PAUSE", 0)
    log: list[str] = []
    cases = [Case("decode", 1, "one"), Case("decode", 2, "two"), Case("decode", 100, "too long")]
    found = measure([Fake("a", log), Fake("b", log)], cases, 2, lambda line: None, number=3)
    assert log == [
        "prepare a1", "prepare b1", "prepare a2", "prepare b2",
        "a1", "b1", "a2", "b2",
        "b1", "a1", "b2", "a2",
    ]  # fmt: skip
    assert {(one.contender, one.case): one.samples for one in found} == {
        ("a", "one"): [1, 3], ("a", "two"): [2, 4], ("b", "one"): [1, 3], ("b", "two"): [2, 4],
    }  # fmt: skip
    assert {one.group for one in found} == {3}


def test_a_contender_that_fails_a_case_is_left_out_of_it_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.bench.turns.PAUSE", 0)
    told: list[str] = []
    cases = [Case("decode", 1, "one"), Case("decode", 2, "two")]
    found = measure([Fake("a", [], fails=(2,)), Fake("b", [])], cases, 3, told.append)
    assert [(one.contender, one.case, len(one.samples)) for one in found] == [
        ("a", "one", 3), ("b", "one", 3), ("b", "two", 3),
    ]  # fmt: skip
    assert [line for line in told if "NOT" in line] == ["NOT MEASURED decode two a: no luck"]


def test_contenders_that_fit_into_memory_together_are_measured_together() -> None:
    ours, other = Fake("ours q4", [], 30), Fake("ours q8", [], 40)
    peer, large = Fake("llama.cpp Q4_0", [], 20), Fake("transformers f32", [], 50)

    def names(available: int) -> list[list[str]]:
        found = groups_in_memory([ours, other, peer, large], "decoder", rivals, available)
        return [[one.name("decoder") for one in group] for group in found]

    assert names(160) == [["ours q4", "ours q8", "llama.cpp Q4_0", "transformers f32"]]
    assert names(140) == [["ours q4", "llama.cpp Q4_0"], ["ours q4", "ours q8", "transformers f32"]]
    assert names(60) == [["ours q4", "llama.cpp Q4_0"], ["ours q8"], ["transformers f32"]]


def test_a_contender_that_needs_more_to_load_than_to_stay_counts_with_its_peak() -> None:
    class Peaky(Fake):
        def memory(self, kind: Kind) -> Memory:
            return Memory(90, 10)

    group = [Fake("ours f32", [], 50), Peaky("transformers f32", [])]
    assert len(list(groups_in_memory(group, "vision", rivals, 100))) == 1  # the peak comes first
    assert len(list(groups_in_memory([*group, Peaky("transformers bf16", [])], "vision", rivals, 100))) == 2


# Statistics.


def test_advantage_is_above_one_when_ours_is_better_whatever_the_unit() -> None:
    assert advantage(20, 10, "tokens/s") == 2
    assert advantage(10, 20, "s") == 2
    assert advantage(20, 10, "GB peak") == 0.5


def test_best_is_the_largest_speed_and_the_smallest_time() -> None:
    assert series("x", samples=(1, 3, 2)).best == 3
    assert series("x", "vision", 640, (1.0, 3.0, 2.0)).best == 1
    assert series("x", samples=(1, 3, 2)).median == 2
    assert series("x", samples=(1, 3, 2)).spread == 1


def test_llama_cpp_is_compared_with_the_same_bits_only() -> None:
    assert rivals("ours q4", "llama.cpp Q4_0")
    assert not rivals("ours q8", "llama.cpp Q4_0")
    assert rivals("ours q8", "transformers bf16")
    assert not rivals("ours q8", "ours q4")
    assert not rivals("transformers f32", "transformers bf16")


def test_ratios_stay_within_a_group_where_ours_was_measured_in_several() -> None:
    ours = series("ours q4", samples=(30,))
    again = replace(ours, samples=[40], group=1)
    peer, alone = series("llama.cpp Q4_0", samples=(10,)), replace(series("transformers f32", samples=(5,)), group=7)
    found = [(one.ours.group, one.peer.contender, one.medians) for one in ratios([ours, again, peer, alone])]
    assert found == [(0, "llama.cpp Q4_0", 3), (0, "transformers f32", 6), (1, "transformers f32", 8)]
