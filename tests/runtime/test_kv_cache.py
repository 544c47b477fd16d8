"""The KV cache grows in steps, keeps what is in it, and shrinks again; logits do not notice."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from models.manifest import Manifest
from runtime import kv_cache
from runtime.buffers import Buffer
from runtime.decoder import Decoder
from runtime.kv_cache import KvCache, Window
from runtime.providers import find_device


@pytest.fixture
def manifest(random_model_folder) -> Manifest:
    return Manifest.load(random_model_folder)


def logits_of_two_rows(folder, manifest: Manifest, lengths: tuple[int, int], steps: int) -> np.ndarray:
    decoder = Decoder(folder, manifest, find_device("cpu"), slots=3)
    prompts = [np.arange(3, 3 + length) % 200 + 3 for length in lengths]
    rows = [decoder.prefill(row, decoder.embed(prompt.tolist())).copy() for row, prompt in enumerate(prompts)]
    collected = [np.stack(rows)]
    for step in range(steps):
        collected.append(decoder.step([7 + step, 90 + step], [length + step for length in lengths]).copy())
    decoder.move(1, 0, lengths[1] + steps)
    collected.append(np.repeat(decoder.step([5], [lengths[1] + steps]), 2, axis=0))
    return np.stack(collected)


def test_growing_while_rows_run_changes_no_logit(random_model_folder, manifest, monkeypatch) -> None:
    roomy = logits_of_two_rows(random_model_folder, manifest, (20, 61), 12)
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 16)  # 20 -> 32, 61 -> 64, and 128 in the middle of the steps
    assert np.array_equal(logits_of_two_rows(random_model_folder, manifest, (20, 61), 12), roomy)


def test_capacity_follows_the_longest_row_and_falls_back_when_no_row_is_in_use(manifest, monkeypatch) -> None:
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 16)
    cache = kv_cache.KvCache(manifest.sizes, 2, "float32", find_device("cpu"))
    assert cache.capacity == 16
    assert cache.fit(40, rows=0)
    assert cache.capacity == 64
    assert not cache.fit(10, rows=1)
    assert cache.capacity == 64
    assert cache.fit(10, rows=0)
    assert cache.capacity == 16
    assert cache.fit(10**9, rows=1)
    assert cache.capacity == manifest.sizes.max_length


def test_growth_that_runs_out_of_memory_leaves_no_stale_binding(random_model_folder, manifest, monkeypatch) -> None:
    """The request that needed it fails; those beside it go on, in whatever buffers have moved."""
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 16)
    roomy = Decoder(random_model_folder, manifest, find_device("cpu"), slots=2)
    decoder = Decoder(random_model_folder, manifest, find_device("cpu"), slots=2)
    for each in (roomy, decoder):
        each.prefill(0, each.embed(list(range(3, 13))))
        each.step([7], [10])
    made = []

    def no_memory(*args) -> Buffer:
        made.append(args)
        if len(made) == 3:
            raise MemoryError
        return Buffer(*args)

    with monkeypatch.context() as patch:
        patch.setattr(kv_cache, "Buffer", no_memory)
        with pytest.raises(MemoryError):
            decoder.step([9], [16])  # the seventeenth position
    gc.collect()
    for step in range(4):
        assert np.array_equal(decoder.step([9 + step], [11 + step]), roomy.step([9 + step], [11 + step]))


def test_a_ring_gives_its_oldest_place_to_the_newest_token() -> None:
    window = Window(prompt=10, size=4)
    assert window.full == 13
    assert [window.replace() for _ in range(5)] == [10, 11, 12, 10, 11]
    assert Window(prompt=10, size=1).replace() is None  # sees itself alone: nothing of the answer is kept


def test_rows_keep_the_prompt_and_the_newest_tokens_of_their_window_wherever_they_move(manifest) -> None:
    """Each token of an answer writes its number where the kernel does: at the row's length."""
    cache = KvCache(manifest.sizes, 3, "float32", find_device("cpu"))
    rows = {0: Window(prompt=3, size=4), 1: None, 2: Window(prompt=5, size=3)}
    lengths = {row: 3 if row == 0 else 5 for row in rows}
    for row, window in rows.items():
        cache.begin(row, window)
        write(cache, row, 0, -1, lengths[row])
    for token in range(11):
        for row in rows:
            write(cache, row, lengths[row], token)
        cache.close_ring([lengths[row] for row in rows])
        for row, window in rows.items():
            lengths[row] = lengths[row] + 1 if window is None else min(lengths[row] + 1, window.full)
    cache.move(2, 0, lengths[2])
    assert sorted(values(cache, 0, 5, 7)) == [9, 10]
    write(cache, 0, 7, 11)
    cache.close_ring([7])
    assert sorted(values(cache, 0, 5, 7)) == [10, 11]
    assert values(cache, 0, 0, 5) == [-1] * 5
    assert values(cache, 1, 5, 16) == list(range(11))


def write(cache: KvCache, row: int, place: int, value: float, places: int = 1) -> None:
    for buffer in cache.buffers.values():
        array = buffer.view(3)
        assert array is not None
        array[row, :, place : place + places] = value


def values(cache: KvCache, row: int, first: int, end: int) -> list[int]:
    """What stands in places of a row, the same in all layers and heads."""
    found = []
    for buffer in cache.buffers.values():
        array = buffer.view(3)
        assert array is not None
        found.append(array[row, :, first:end].max(axis=(0, 2)).tolist())
    assert all(one == found[0] for one in found)
    return [int(value) for value in found[0]]
