"""Decode steps: nothing is bound, allocated or recorded anew while nothing has changed."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.manifest import Manifest
from models.settings import InferenceSettings
from runtime import buffers, kv_cache
from runtime import decoder as decoder_module
from runtime.candidates import Chooser, certain_tokens
from runtime.decoder import BoundStep, Decoder
from runtime.providers import Device, ort
from tests.runtime.watched import WatchedSession, watch


def watched(
    folder: Path, calls: Counter[str], *, slots: int = 4, replays: bool = False
) -> tuple[Decoder, WatchedSession]:
    decoder = Decoder(folder, Manifest.load(folder), Device("cpu", 1, replays), slots)
    return decoder, watch(decoder, calls)


def make(folder: Path, calls: Counter[str], *, slots: int = 4, replays: bool = False) -> Decoder:
    return watched(folder, calls, slots=slots, replays=replays)[0]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What is counted: bindings, what is bound to them, buffers, runs."""
    counted: Counter[str] = Counter()

    def count(name: str, method: str) -> None:
        original = getattr(buffers.Buffer, method)

        def counting(*arguments: Any, **named: Any) -> Any:
            counted[name] += 1
            return original(*arguments, **named)

        monkeypatch.setattr(buffers.Buffer, method, counting)

    count("buffers", "__init__")
    count("bound", "bind_input")
    count("bound", "bind_output")
    return counted


def test_steps_of_the_same_rows_bind_nothing_and_make_no_buffer(random_model_folder, calls) -> None:
    decoder = make(random_model_folder, calls)
    for row in range(3):
        decoder.prefill(row, decoder.embed([0, *range(3, 20)]))
    for rows in (3, 2):
        decoder.step([5] * rows, [18] * rows)
    calls.clear()
    for i in range(20):
        decoder.step([5, 6, 7], [19 + i] * 3)
        decoder.step([5, 6], [19 + i] * 2)  # a row that is free is there again in the next step
    assert calls == {"runs": 80}


def test_another_number_of_rows_and_a_moved_cache_are_bound_once(random_model_folder, calls, monkeypatch) -> None:
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 32)
    decoder = make(random_model_folder, calls)
    decoder.prefill(0, decoder.embed([0, *range(3, 20)]))
    calls.clear()
    decoder.step([5], [18])
    assert calls["bindings"] == 2  # embed and decode
    calls.clear()
    for length in range(19, 70):  # the cache grows at 32 and at 64
        decoder.step([5], [length])
    layers = Manifest.load(random_model_folder).sizes.layers
    assert calls["buffers"] == 2 * 2 * layers
    assert calls["bindings"] == 2 * 2
    assert calls["bound"] == 2 * (2 + 3 + 4 * layers)


def kept_by_steps() -> int:
    """Bytes that calls of the decoder hold at the moment, as traced, but for those taken within ONNX Runtime's code.

    Each of its runs makes a name anew that pybind11 looks up on a type, and Python's cache of such look-ups, which goes
    by the name's address, keeps 15 to 4,096 of them, of 124 bytes each.
    """
    gc.collect()
    of_steps = tracemalloc.Filter(inclusive=True, filename_pattern=decoder_module.__file__, all_frames=True)
    of_others = tracemalloc.Filter(inclusive=False, filename_pattern=str(Path(ort.__file__).parent / "*"))
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([of_steps, of_others]).traces)


def test_a_step_keeps_nothing_and_copies_no_logits(random_model_folder) -> None:
    decoder = Decoder(random_model_folder, Manifest.load(random_model_folder), Device("cpu", 1), 4)
    for row in range(4):
        decoder.prefill(row, decoder.embed([0, *range(3, 20)]))
    first = decoder.step([5] * 4, [18] * 4)
    taken: list[int] = []
    tracemalloc.start(25)
    try:
        for i in range(50):  # what is made once and stays is made in the first steps
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            logits = decoder.step([5] * 4, [19 + i] * 4)
            taken.append(tracemalloc.get_traced_memory()[1] - before)
        kept = kept_by_steps()
        for i in range(500):
            decoder.step([5] * 4, [69 + i] * 4)
        grown = kept_by_steps() - kept
    finally:
        tracemalloc.stop()
    assert logits is first  # one view of one buffer
    assert grown < 500  # nothing for each step: a number that is not in some list is 32 bytes, a pointer 8
    assert min(taken) < first.nbytes  # during some of the steps other threads take memory too


def test_logits_are_those_of_the_rows_asked_for(random_model_folder, calls) -> None:
    decoder, session = watched(random_model_folder, calls)
    for row, length in enumerate((10, 20, 30)):
        decoder.prefill(row, decoder.embed([0, *range(3, 2 + length)]))
    together = decoder.step([5, 6, 7], [10, 20, 30]).copy()
    assert together.shape == (3, Manifest.load(random_model_folder).sizes.vocabulary)
    assert np.allclose(decoder.step([5], [10]), together[:1], atol=1e-5)
    # As a GPU has it, where the host cannot see the buffer: through the binding's output.
    again = decoder.step([5, 6, 7], [10, 20, 30])
    unseen = BoundStep(session.newest, session.newest, ort.RunOptions(), None, view=None)
    assert np.array_equal(unseen.logits(3), again)


def test_a_recorded_step_gives_what_a_plain_one_gives(random_model_folder, calls) -> None:
    """The length of the whole cache in place of the longest row's: the kernel goes by each row's own."""
    found = []
    for replays in (False, True):
        decoder = make(random_model_folder, calls, replays=replays)
        decoder.prefill(0, decoder.embed([0, *range(3, 40)]))
        decoder.prefill(1, decoder.embed([0, *range(3, 13)]))
        found.append(np.stack([decoder.step([5, 6], [38 + i, 11 + i]).copy() for i in range(4)]))
    assert np.abs(found[0] - found[1]).max() / np.abs(found[0]).max() < 1e-6


def test_recordings_are_told_apart_by_rows_and_by_where_the_cache_is(random_model_folder, calls, monkeypatch) -> None:
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 32)
    decoder, session = watched(random_model_folder, calls, replays=True)
    decoder.prefill(0, decoder.embed([0, *range(3, 20)]))
    assert set(session.recordings) == {"-1"}  # other shapes each time
    session.recordings.clear()
    for rows, length in ((1, 18), (2, 19), (1, 20), (2, 21), (1, 40), (1, 41)):
        decoder.step([5] * rows, [length] * rows)
    assert session.recordings == ["1", "2", "1", "2", "3", "3"]  # at 40 the cache has moved: an old one is never used


def steps_of(decoder: Decoder, rows: int) -> list[tuple[np.ndarray, list[int | None]]]:
    """Logits and the greedy tokens of some steps, after prompts of different lengths."""
    choosers = [Chooser(InferenceSettings(), np.array([3, 299])) for _ in range(rows)]
    lengths = [7 + 5 * row for row in range(rows)]
    for row, length in enumerate(lengths):
        decoder.prefill(row, decoder.embed([0, *range(3, 2 + length)]))
    found = []
    for step in range(3):
        scores = decoder.score([5 + row + step for row in range(rows)], [length + step for length in lengths])
        assert len(scores) == rows
        whole = np.stack([scores.whole(row).copy() for row in range(rows)])
        tokens = certain_tokens(choosers, scores.candidates)
        found.append((whole, tokens))
    return found


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 9])
def test_rows_that_fill_up_a_recorded_step_change_nothing(random_model_folder, calls, rows) -> None:
    plain = steps_of(make(random_model_folder, calls, slots=12), rows)
    recorded = steps_of(make(random_model_folder, calls, slots=12, replays=True), rows)
    for (expected, _), (found, _) in zip(plain, recorded, strict=True):
        assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-5


def test_the_device_picks_candidates_of_the_rows_asked_for(random_model_folder, calls) -> None:
    folder = random_model_folder
    decoder = Decoder(folder, Manifest.load(folder), Device("cpu", 1, replays=True, picks=True), 12)
    for whole, tokens in steps_of(decoder, 5):
        whole[:, [3, 299]] = -np.inf
        assert tokens == whole.argmax(axis=1).tolist()


def test_a_row_that_is_half_filled_keeps_its_prompt_while_others_are_stepped(random_model_folder, calls) -> None:
    """It may be one of those that fill up a recorded step."""
    prompt = [0, *range(3, 40)]
    expected = make(random_model_folder, calls).prefill(0, make(random_model_folder, calls).embed(prompt))
    decoder = make(random_model_folder, calls, slots=4, replays=True)
    for row in range(3):
        decoder.prefill(row, decoder.embed([0, *range(3, 20)]))
    embeddings, positions = decoder.embed(prompt), np.arange(len(prompt))[None]
    decoder.prefill_chunk(3, 0, embeddings[:20], positions)
    for step in range(4):
        decoder.step([5, 6, 7], [18 + step] * 3)  # of four rows, as far as the recording goes
    found = decoder.prefill_chunk(3, 20, embeddings[20:], positions)
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-5


def test_rows_that_fill_up_a_step_never_read_what_nobody_wrote(random_model_folder, calls, monkeypatch) -> None:
    """A grown cache keeps the rows in use; behind the others' tokens there may be anything, on a GPU even NaN."""
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 32)
    decoder = make(random_model_folder, calls, slots=4, replays=True)
    for row in range(4):
        decoder.prefill(row, decoder.embed([0, *range(3, 20)]))
    written: list[list[int]] = []
    write = buffers.Buffer.write

    def noting(buffer: buffers.Buffer, rows: np.ndarray) -> None:
        if (buffer.shape, buffer.dtype) == ((4,), np.int32):  # the rows' lengths
            written.append(rows.tolist())
        write(buffer, rows)

    monkeypatch.setattr(buffers.Buffer, "write", noting)
    decoder.step([5, 6, 7], [18, 18, 18])
    decoder.make_room(50, rows=2)  # those two go on; two others are free
    decoder.step([5, 6, 7], [19, 19, 0])
    assert written == [[18, 18, 18, 18], [19, 19, 0, 0]]


def test_a_step_that_fails_is_recorded_anew(random_model_folder, calls, monkeypatch) -> None:
    decoder, session = watched(random_model_folder, calls, slots=2, replays=True)
    decoder.prefill(0, decoder.embed([0, *range(3, 20)]))
    alone: list[bool] = []
    running = Device.running
    monkeypatch.setattr(
        Device, "running", lambda self, *, first=False: alone.append(first) or running(self, first=first)
    )

    def refuse(*_: Any) -> None:
        raise RuntimeError("CUDA failure 2: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(session, "run_with_iobinding", refuse)
        with pytest.raises(RuntimeError):
            decoder.step([5], [18])
    decoder.step([5], [18])
    decoder.step([5], [19])
    assert alone == [True, True, False]


def test_few_recordings_serve_every_number_of_rows(random_model_folder, calls, monkeypatch) -> None:
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 32)
    decoder, session = watched(random_model_folder, calls, slots=20, replays=True)
    for row in range(20):
        decoder.prefill(row, decoder.embed([0, 3, 4]))
    released: list[int] = []
    monkeypatch.setattr(session.inner, "release_captured_graph", released.append)
    session.recordings.clear()
    for length in (3, 40, 3):  # the cache grows once, and does not shrink again
        for rows in range(1, 21):
            decoder.step([5] * rows, [length] * rows)
        decoder.make_room(1, rows=0)
    assert len(set(session.recordings)) == 2 * len((1, 2, 4, 8, 16, 20))
    assert sorted(released) == [1, 2, 3, 4, 5, 6]  # those of the smaller cache
    assert decoder.capacity == 64


def test_without_cuda_graphs_nothing_is_recorded(random_model_folder, calls) -> None:
    decoder, session = watched(random_model_folder, calls)
    decoder.prefill(0, decoder.embed([0, 3, 4]))
    decoder.step([5], [3])
    assert set(session.recordings) == {"-1"}
