"""Positions reach the decoder: those of the prompt as its family says, those of the answer counted on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from models.family import Positions
from models.manifest import RotaryInfo
from models.rotary import rotary_tables
from models.settings import InferenceSettings
from runtime.engine import Engine
from runtime.providers import find_device
from runtime.rotary import HostRotary
from runtime.sequence import Sequence
from runtime.stop import Stop
from tests.runtime.scripted_engine import WORDS, FakeModel, outcome


class PositionedModel(FakeModel):
    """Remembers the positions that each row was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[list[list[int]]] = []
        self.steps: list[tuple[list[int], list[int]]] = []  # positions and lengths

    def prefill_chunk(
        self, row: int, start: int, embeddings: np.ndarray, positions: np.ndarray, stop: Stop, window: int | None = None
    ) -> np.ndarray:
        self.prompts.append(positions.tolist())
        return super().prefill_chunk(row, start, embeddings, positions, stop)

    def step(self, token_ids: list[int], lengths: list[int], positions: list[int]) -> np.ndarray:
        self.steps.append((positions, lengths))
        return super().step(token_ids, lengths, positions)


@pytest.fixture
def engine_of() -> Iterator[Callable[[FakeModel], Engine]]:
    engines: list[Engine] = []

    def make(model: FakeModel) -> Engine:
        engines.append(Engine(model, model, slots=2, max_queue=4))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def run(engine: Engine, prompt: list[int], positions: Positions | None) -> None:
    settings = InferenceSettings(max_new_tokens=4, no_repeat_ngram_size=0, stop_on_loop=False)
    request = Sequence(prompt, [], settings, WORDS, 1000, positions=positions)
    engine.submit(request)
    assert outcome(request)[1].detail == "max_tokens"


def test_an_answer_goes_on_behind_the_prompts_last_position_not_behind_its_length(engine_of) -> None:
    model = PositionedModel()
    axes = np.array([[0, 1, 1, 1], [0, 1, 1, 2], [0, 1, 2, 1]])
    run(engine_of(model), [5, 6, 7, 8], Positions(axes, 3))
    assert model.prompts == [axes.tolist()]
    assert model.steps == [([3], [4]), ([4], [5]), ([5], [6])]


def test_without_positions_of_its_own_a_prompt_is_counted(engine_of) -> None:
    model = PositionedModel()
    run(engine_of(model), [5, 6, 7, 8], None)
    assert model.prompts == [[[0, 1, 2, 3]]]
    assert model.steps == [([4], [4]), ([5], [5]), ([6], [6])]


class Bound:
    """What was bound, in place of an IOBinding."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        assert array.flags.c_contiguous, "ONNX Runtime takes the memory as it lies"
        self.arrays[name] = array

    def bind_input(self, name: str, device: str, number: int, dtype: Any, shape: tuple[int, ...], at: int) -> None:
        self.shapes[name] = shape


INFO = RotaryInfo(theta=10_000.0, sections=(1, 2, 3))


def host_rotary() -> HostRotary:
    return HostRotary(INFO, 3, np.dtype(np.float32), find_device("cpu"))


def test_each_axis_turns_its_own_pairs_of_channels() -> None:
    cos, sin = rotary_tables(np.array([[5], [7], [11]]), (1, 2, 3), 10_000.0)
    angles = np.array([5, 7, 7, 11, 11, 11]) * 10_000.0 ** -(np.arange(6) / 6)
    assert np.abs(cos[0] - np.cos(angles)).max() < 1e-6
    assert np.abs(sin[0] - np.sin(angles)).max() < 1e-6


def test_a_prompt_brings_a_row_for_each_token_and_a_chunk_names_its_own() -> None:
    rotary, bound = host_rotary(), Bound()
    positions = np.array([[0, 1, 1, 3], [0, 1, 2, 3], [0, 2, 1, 3]])
    rotary.take_prompt(positions)
    rotary.bind_prompt(bound, 2, 4)  # type: ignore[arg-type]
    assert bound.arrays["rotary_rows"].tolist() == [[2, 3]]
    cos, _ = rotary_tables(positions, INFO.sections, INFO.theta)
    assert np.array_equal(bound.arrays["rotary_cos"], cos)


def test_prompts_that_are_fed_together_bring_a_row_for_each_of_their_tokens() -> None:
    rotary, bound = host_rotary(), Bound()
    long, short = np.array([[0, 1, 1, 3, 4], [0, 1, 2, 3, 4], [0, 2, 1, 3, 4]]), np.arange(3)[None]
    rotary.bind_prompts(bound, [long, short], 4)  # type: ignore[arg-type]
    rows, cosines = bound.arrays["rotary_rows"], bound.arrays["rotary_cos"]
    assert rows.shape == (2, 4)
    assert len(cosines) >= 5, "the kernel wants a row for each position in the cache"
    for index, (positions, tokens) in enumerate(((long, 4), (np.tile(short, (3, 1)), 3))):
        cos, _ = rotary_tables(positions[:, :tokens], INFO.sections, INFO.theta)
        assert np.array_equal(cosines[rows[index, :tokens]], cos)


def test_plain_positions_count_in_every_axis() -> None:
    rotary, bound = host_rotary(), Bound()
    rotary.take_prompt(np.arange(4)[None])
    rotary.bind_prompt(bound, 0, 4)  # type: ignore[arg-type]
    cos, _ = rotary_tables(np.tile(np.arange(4), (3, 1)), INFO.sections, INFO.theta)
    assert np.array_equal(bound.arrays["rotary_cos"], cos)


def test_the_table_of_decode_steps_has_as_many_rows_as_the_cache() -> None:
    rotary = host_rotary()
    for capacity in (16, 64, 16):
        bound = Bound()
        rotary.fit(capacity)
        rotary.bind_step(bound, 2)  # type: ignore[arg-type]
        assert bound.shapes == {"rotary_cos": (capacity, 6), "rotary_sin": (capacity, 6), "rotary_rows": (2, 1)}
