"""Slots and chunks, from what is known of device, model and memory."""

from __future__ import annotations

import psutil
import pytest

from models.manifest import Manifest
from runtime import planning
from runtime.planning import default_slots, prefill_chunk, spread
from runtime.providers import Device, find_device


def test_slots_are_chosen_from_the_free_memory(random_model_folder, monkeypatch) -> None:
    manifest = Manifest.load(random_model_folder)
    sizes = manifest.sizes
    row = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * 4 * min(2048, sizes.max_length)
    for available, expected in [(0, 1), (12 * row, 3), (10**15, 8)]:
        memory = type("Memory", (), {"available": available})
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        assert default_slots(manifest, find_device("cpu")) == expected


@pytest.mark.parametrize(
    ("layers", "hidden", "device", "vnni", "expected"),
    [
        (12, 1280, Device("cpu", 2), True, 256),  # DeepSeek-OCR, 0.9 s where it was measured
        (12, 1280, Device("cpu", 2), False, 128),  # 1.1 to 1.5 s
        (12, 1280, Device("cpu", 16), True, 1024),
        (12, 1280, Device("cuda", 0), True, 1024),
        (6, 256, Device("cpu", 2), True, 1024),
        (80, 8192, Device("cpu", 2), True, 64),
    ],
)
def test_a_chunk_is_what_a_device_feeds_in_about_a_second(
    random_model_folder, monkeypatch, layers, hidden, device, vnni, expected
) -> None:
    manifest = Manifest.load(random_model_folder)
    sizes = manifest.sizes.model_copy(update={"layers": layers, "hidden_size": hidden})
    monkeypatch.setattr(planning, "adds_bytes_exactly", lambda: vnni)
    assert prefill_chunk(manifest.model_copy(update={"sizes": sizes}), device) == expected


@pytest.mark.parametrize(
    ("megabytes", "device", "expected"),
    [
        (20, Device("cpu", 2), [1, 1]),  # tiny-ocr
        (20, Device("cpu", 0), [1, 1, 1]),  # as many as this machine has processors
        (20, Device("cpu", 64), [1, 1, 1, 1]),
        (20, Device("cpu", 1), [1]),
        (800, Device("cpu", 2), [2]),
        (20, Device("cuda", 0), [0]),
        (20, Device("coreml", 2), [2]),
    ],
)
def test_a_small_model_is_in_engines_of_one_thread_on_a_cpu(
    random_model_folder, monkeypatch, megabytes, device, expected
) -> None:
    manifest = Manifest.load(random_model_folder)
    name, info = next(iter(manifest.files.items()))
    manifest = manifest.model_copy(update={"files": {name: info.model_copy(update={"size": megabytes << 20})}})
    monkeypatch.setattr(planning, "processors", lambda: 3)
    found = spread(manifest, device)
    assert [one.threads for one in found] == expected
    assert {one.name for one in found} == {device.name}
