"""Warm-up: what is slow the first time has happened before a request comes, and changes nothing that it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.manifest import Manifest
from models.registry import family_of
from runtime import model as model_module
from runtime import planning
from runtime.decoder import PREFILL_CHUNK, Decoder
from runtime.failing import explained
from runtime.model import Model
from runtime.planning import default_slots
from runtime.providers import Device
from runtime.vision import VisionTower
from runtime.warmup import default_warm_up, token_buckets, warm_up
from tests.runtime.watched import watch_tower

# Decides as on a GPU, and computes on the CPU.
LIKE_CUDA = Device("cpu", 1, replays=True, picks=True, resident=True)


@pytest.fixture
def parts(random_model_folder: Path) -> tuple[Manifest, Decoder, VisionTower]:
    manifest = Manifest.load(random_model_folder)
    decoder = Decoder(random_model_folder, manifest, LIKE_CUDA, 6)
    return manifest, decoder, VisionTower(random_model_folder, manifest, LIKE_CUDA)


def test_every_number_of_tokens_has_its_power_of_two_run_before_anybody_comes() -> None:
    for slots in (1, 4, 64, 100):
        by_steps = {1 << (rows - 1).bit_length() for rows in range(1, slots + 1)}
        buckets = by_steps | set(token_buckets(slots))
        assert {1 << (tokens - 1).bit_length() for tokens in range(1, PREFILL_CHUNK + 1)} <= buckets


def test_after_it_requests_record_nothing_and_bring_no_new_shape_of_a_page(parts, picture) -> None:
    manifest, decoder, vision = parts
    watched = watch_tower(vision)
    warm_up("quick", decoder, vision, family_of(manifest), 6)
    shapes = [fed["pixel_values"].shape for fed in watched.fed]
    assert len(shapes) == len(set(shapes)) > 1
    recorded = decoder.recordings
    assert recorded == len(decoder.recorded_rows()) == len((1, 2, 4, 6))
    for rows in range(1, 7):
        decoder.score([5] * rows, [20] * rows)
    assert decoder.recordings == recorded
    warm = set(shapes)
    watched.fed.clear()
    passes = [make() for make in family_of(manifest).prepare_image(picture(1240, 1754), {}).passes]
    vision.encode_all(passes)
    shapes = [fed["pixel_values"].shape for fed in watched.fed]
    assert set(shapes) <= warm
    assert len(shapes) < len(passes)


def test_it_leaves_nothing_behind_that_a_request_sees(random_model_folder, picture, monkeypatch) -> None:
    monkeypatch.setattr(model_module, "find_device", lambda name, threads: LIKE_CUDA)
    answers = []
    for how in ("none", "quick"):
        with Model.open(random_model_folder, slots=3, warm_up=how) as model:
            answers.append(model.read(picture(300, 200), max_new_tokens=12, stop_on_loop=False).tokens)
    monkeypatch.undo()
    with Model.open(random_model_folder, device="cpu", slots=3) as model:
        answers.append(model.read(picture(300, 200), max_new_tokens=12, stop_on_loop=False).tokens)
    assert answers[0] == answers[1] == answers[2] != []


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 1.0, "top_k": 5, "seed": 3},
                                      {"do_sample": True, "temperature": 1.0, "seed": 3},
                                      {"repetition_penalty": 0.9}])  # fmt: skip
def test_a_model_whose_device_picks_candidates_reads_as_one_with_whole_rows(
    random_model_folder, picture, monkeypatch, sampling
) -> None:
    found = []
    for device in (LIKE_CUDA, Device("cpu", 1)):
        monkeypatch.setattr(model_module, "find_device", lambda name, threads, device=device: device)
        with Model.open(random_model_folder, slots=3) as model:
            settings = {"max_new_tokens": 12, "stop_on_loop": False, **sampling}
            found.append(model.read(picture(300, 200), **settings).tokens)
    assert found[0] == found[1] != []


def test_only_cuda_warms_up_by_itself() -> None:
    assert [default_warm_up(Device(name, 0)) for name in ("cuda", "cpu", "coreml")] == ["quick", "none", "none"]


def test_slots_on_a_gpu_come_from_its_free_memory(random_model_folder, monkeypatch) -> None:
    manifest = Manifest.load(random_model_folder)
    sizes = manifest.sizes.model_copy(update={"layers": 12, "kv_heads": 10, "head_dim": 128, "max_length": 8192})
    manifest = manifest.model_copy(
        update={"sizes": sizes, "decoder": manifest.decoder.model_copy(update={"compute": {"cuda": "float16"}})}
    )
    found = []
    for free in (None, 1e9, 8e9, 80e9):
        monkeypatch.setattr(planning, "free_memory", lambda index, free=free: free)
        found.append(default_slots(manifest, Device("cuda", 0)))
    assert found == [64, 1, 23, 64]  # a row of 2,048 tokens has 126 MB


@pytest.mark.parametrize(
    "text", ["CUDA failure 2: out of memory ; GPU=0", "Failed to allocate memory for requested buffer"]
)
def test_a_request_that_a_full_gpu_fails_hears_which_setting_to_change(text) -> None:
    assert "fewer --slots" in explained(RuntimeError(text))
    assert explained(RuntimeError("shape mismatch")) == "RuntimeError: shape mismatch"
    assert text in explained(RuntimeError(text))
