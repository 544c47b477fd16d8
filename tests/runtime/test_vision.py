"""Views that were encoded before come from the feature cache, bit for bit, within its size."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from models.manifest import Manifest
from models.registry import family_of
from runtime import Model
from runtime.providers import ENCODER_NICENESS, Device, find_device
from runtime.vision import Constants, FeatureCache, VisionTower
from tests.runtime.watched import watch_tower
from tools.paddle_checkpoints import write_paddle_checkpoint


def outputs(value: float, floats: int = 10) -> dict[str, np.ndarray]:
    return {"features": np.full(floats, value, np.float32)}


def test_the_least_recently_used_outputs_go_first() -> None:
    cache = FeatureCache(100)  # two entries of 40 bytes
    for name in (b"a", b"b"):
        cache.put(name, outputs(1))
    assert cache.get(b"a") is not None
    cache.put(b"c", outputs(2))
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    assert cache.get(b"c") is not None
    cache.put(b"too large", outputs(3, floats=30))
    assert cache.get(b"too large") is None
    assert cache.get(b"a") is not None


def test_different_views_have_different_keys() -> None:
    cache = FeatureCache(100)
    pixels = np.zeros((1, 3, 4, 4), np.float32)
    other = pixels.copy()
    other[0, 0, 0, 0] = 1
    keys = {
        cache.key({"pixel_values": pixels}),
        cache.key({"pixel_values": other}),
        cache.key({"pixel_values": pixels.reshape(1, 3, 2, 8)}),
        cache.key({"places": pixels}),
    }
    assert len(keys) == 4


@pytest.mark.parametrize(("cache_mb", "runs"), [(8, 1), (0, 2)])
def test_an_image_asked_about_twice_is_encoded_once_unless_switched_off(
    random_model_folder, picture, cache_mb, runs
) -> None:
    manifest = Manifest.load(random_model_folder)
    tower = VisionTower(random_model_folder, manifest, find_device("cpu"), cache_mb)
    watched = watch_tower(tower)
    feeds = family_of(manifest).prepare_image(picture(200, 100), {}).passes[0]
    first, second = tower.encode(feeds()), tower.encode(feeds())
    assert len(watched.fed) == runs
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_the_second_reading_of_a_page_gives_the_same_text(random_model_folder, picture) -> None:
    with Model.open(random_model_folder, device="cpu", slots=2) as model:
        first, second = (model.read(picture(300, 800), max_new_tokens=16) for _ in range(2))
    assert first.tokens == second.tokens


def test_passes_of_one_size_go_together_and_give_what_each_gives_alone(random_model_folder, picture) -> None:
    manifest = Manifest.load(random_model_folder)
    family = family_of(manifest)
    passes = [
        make() for size in ((1300, 900), (200, 100), (900, 900))
        for make in family.prepare_image(picture(*size), {}).passes
    ]  # fmt: skip
    alone = VisionTower(random_model_folder, manifest, Device("cpu", 1))
    together = VisionTower(random_model_folder, manifest, Device("cpu", 1, picks=True), cache_mb=64)
    assert (alone.batch, together.batch) == (1, 8)
    watched = watch_tower(together)
    found = together.encode_all(passes)
    runs = [len(fed["pixel_values"]) for fed in watched.fed]
    assert sum(runs) == len(passes)
    assert len(runs) < len(passes)
    for feeds, outputs in zip(passes, found, strict=True):
        for name, value in alone.encode(feeds).items():
            assert outputs[name].shape == value.shape
            assert np.abs(outputs[name] - value).max() <= 1e-5 * np.abs(value).max()
    watched.fed.clear()
    assert together.encode_all(passes[:3])[0]["features"] is found[0]["features"]
    assert watched.fed == []


def test_a_graph_that_takes_one_page_at_a_time_is_given_one(tmp_path_factory, export_checkpoint) -> None:
    checkpoint = write_paddle_checkpoint(tmp_path_factory.mktemp("paddle") / "checkpoint")
    folder = export_checkpoint(checkpoint, "f32", "paddleocr-vl", "paddleocr-vl")
    assert VisionTower(folder, Manifest.load(folder), Device("cpu", 1, picks=True)).batch == 1


def test_what_comes_with_every_view_of_a_size_is_copied_to_the_device_once() -> None:
    constants = Constants(Device("cpu", 1))
    table, shape, pixels = np.ones(3), np.array([1, 2]), np.ones(4)
    for array in (table, shape):
        array.flags.writeable = False
    assert constants.value("sam_rows", table) is constants.value("sam_rows", table)
    assert constants.value("square_shape", shape) is not constants.value("square_shape", shape)
    assert constants.value("pixel_values", pixels) is not constants.value("pixel_values", pixels)
    for _ in range(100):
        other = np.ones(2)
        other.flags.writeable = False
        constants.value("places", other)
    assert len(constants) == 64


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is a thread's own on Linux only")
def test_the_threads_of_the_vision_graph_let_the_decoder_go_first(random_model_folder) -> None:
    def niceness() -> dict[int, int]:
        found = {}
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # one of an earlier test's, which has just ended
                found[int(thread.name)] = os.getpriority(os.PRIO_PROCESS, int(thread.name))
        return found

    before, own = niceness(), os.getpriority(os.PRIO_PROCESS, 0)
    with Model.open(random_model_folder, device="cpu", threads=2, slots=1):
        new = [nice for thread, nice in niceness().items() if thread not in before]
    behind = min(own + ENCODER_NICENESS, 19)
    assert new.count(behind) >= 2  # the engine's thread for views, and the session's second one
    assert new.count(own) >= 2  # the decoder's
