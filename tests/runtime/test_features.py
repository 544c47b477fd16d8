"""Features that stay in a device's memory up to the prefill; a CPU's own stands for it here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.family import PreparedImage
from models.manifest import Manifest
from models.registry import family_of
from models.settings import InferenceSettings
from runtime import Model
from runtime import model as model_module
from runtime.features import OrderedRows, Rows, assembled, merge, padded, views_of
from runtime.providers import Device, ort
from runtime.requests import Finished, Request
from runtime.vision import FeatureCache, VisionTower
from tools.checkpoints import write_random_checkpoint
from tools.deepseek2_checkpoints import DEEPSEEK_OCR_2, Sizes2
from tools.paddle_checkpoints import PaddleSizes, write_paddle_checkpoint

PLAIN = Device("cpu", 1)
RESIDENT = Device("cpu", 1, picks=True, resident=True)  # as CUDA is, several views in a pass among it


def rows(array: np.ndarray) -> Rows:
    return Rows(ort.OrtValue.ortvalue_from_numpy(array), RESIDENT)


def read(found: Rows) -> np.ndarray:
    whole: np.ndarray = found.value.numpy()
    return whole.reshape(-1, found.width)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of values that were copied to the host."""
    shapes: list[tuple[int, ...]] = []
    copy = ort.OrtValue.numpy

    def counted(self: ort.OrtValue) -> np.ndarray:
        shapes.append(tuple(self.shape()))
        array: np.ndarray = copy(self)
        return array

    monkeypatch.setattr(ort.OrtValue, "numpy", counted)
    return shapes


@pytest.fixture(scope="module", params=["deepseek-ocr", "deepseek-ocr-2", "paddleocr-vl"])
def folder(request, random_model_folder, export_checkpoint, tmp_path_factory) -> Path:
    """Exports whose images are tiles in a grid with newlines, tiles one after the other, and one page in one pass."""
    if request.param == "deepseek-ocr":
        return random_model_folder
    target = tmp_path_factory.mktemp(request.param) / "checkpoint"
    if request.param == "paddleocr-vl":
        write_paddle_checkpoint(target, PaddleSizes())
    else:
        write_random_checkpoint(target, Sizes2(max_positions=4096), layout=DEEPSEEK_OCR_2)
    return export_checkpoint(target, "f32", request.param, request.param)


def test_what_a_family_puts_in_order_on_the_device_is_what_it_puts_in_order_here(folder, picture) -> None:
    manifest = Manifest.load(folder)
    image = family_of(manifest).prepare_image(picture(900, 700), {})
    passes = [make() for make in image.passes]
    tower = VisionTower(folder, manifest, PLAIN)
    expected = image.assemble([tower.encode(feeds) for feeds in passes])
    found = assembled(image, VisionTower(folder, manifest, RESIDENT, resident=True).encode_all(passes))
    assert isinstance(found, OrderedRows)
    assert sum(map(len, found.sources)) <= len(expected) + 1, "what nobody reads is bound, too"
    embeddings = rows(np.zeros((image.token_count, expected.shape[1]), np.float32))
    merged = merge(embeddings, np.ones(image.token_count, bool), [found])
    assert isinstance(merged, Rows)
    assert np.abs(read(merged) - expected).max() / np.abs(expected).max() < 1e-5


def test_a_request_reads_alike_and_nothing_of_it_is_copied_through_the_host(
    folder, picture, monkeypatch, copies
) -> None:
    """Two images in a prompt, and several requests at once, whose prompts then go through the decoder together."""
    settings = InferenceSettings().override({"max_new_tokens": 8, "stop_on_loop": False})
    asked = [
        Request("<image>\n<image>read", [picture(200, 250, 1), picture(200, 300, 2)], settings),
        *(Request("<image>read", [picture(300 + 10 * seed, 200, seed)], settings) for seed in range(3, 6)),
        Request("words alone", (), settings),
    ]
    answers = []
    for device in (PLAIN, RESIDENT):
        monkeypatch.setattr(model_module, "find_device", lambda name, threads, device=device: device)
        with Model.open(folder, slots=4) as model:
            copies.clear()
            generations = [model.submit(one) for one in asked]
            answers.append([list(tokens_of(generation)) for generation in generations])
    assert copies == []
    assert answers[0] == answers[1]


def tokens_of(generation: Any) -> Iterator[int]:
    while not isinstance(event := generation.next_event(60), Finished):
        assert event is not None
    assert event.error is None
    return iter(generation.tokens)


def test_rows_are_taken_from_several_values_and_cast_to_the_first_ones_type() -> None:
    random = np.random.default_rng(1)
    words, tile, line = (random.normal(size=shape).astype(np.float16) for shape in ((6, 4), (1, 3, 4), (4,)))
    image = PreparedImage(
        [dict, dict], 4, lambda outputs: np.concatenate([outputs[1]["a"][0][::-1], outputs[0]["line"][None]])
    )
    passes = [{"a": rows(tile), "line": rows(line.astype(np.float32))}, {"a": rows(2 * tile), "line": rows(line)}]
    slots = np.array([0, 1, 1, 1, 1, 0], bool)
    merged = merge(rows(words), slots, [assembled(image, passes)])
    assert isinstance(merged, Rows)
    np.testing.assert_array_equal(read(merged), np.stack([words[0], *(2 * tile[0, ::-1]), line, words[5]]))
    assert merged.element == rows(words).element


def test_shorter_prompts_are_filled_up_with_numbers_and_not_with_what_was_there() -> None:
    prompts = [np.full((count, 3), count, np.float32) for count in (2, 5, 1)]
    found = read(padded([rows(one)[:] for one in prompts])).reshape(3, 5, 3)
    for one, prompt in zip(found, prompts, strict=True):
        assert np.array_equal(one, np.full((5, 3), prompt[0, 0]))


def test_a_slice_is_the_same_memory() -> None:
    whole = rows(np.arange(12, dtype=np.float32).reshape(6, 2))
    part = whole[1:5][1:]
    assert (len(part), part.address - whole.address, part.nbytes) == (3, 2 * 8, 3 * 8)


def test_the_memory_of_features_counts_their_bytes_and_a_view_of_several_holds_its_own() -> None:
    batch = rows(np.arange(8 * 10 * 4, dtype=np.float32).reshape(8, 10, 4))
    views = views_of(batch)
    assert [read(view)[0, 0] for view in views] == [40.0 * i for i in range(8)]
    assert not any(batch.address <= view.address < batch.address + batch.nbytes for view in views)
    cache = FeatureCache(2 * 160)
    for number, view in enumerate(views):
        cache.put(bytes([number]), {"features": view})
    assert [number for number in range(8) if cache.get(bytes([number]))] == [6, 7]


def test_a_picture_asked_about_again_is_taken_from_the_device(random_model_folder, picture) -> None:
    manifest = Manifest.load(random_model_folder)
    tower = VisionTower(random_model_folder, manifest, RESIDENT, 64, resident=True)
    image = family_of(manifest).prepare_image(picture(900, 700), {})
    first = tower.encode_all([make() for make in image.passes])
    tower.wrap_session(lambda session: None)
    again = tower.encode_all([make() for make in image.passes])
    assert [one["features"] for one in again] == [one["features"] for one in first]
    assert all(isinstance(one["features"], Rows) for one in first)
