"""Prompts that go through the decoder in one run: each reads as alone, whoever is beside it and wherever its row is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.manifest import Manifest
from models.settings import InferenceSettings
from runtime import Model
from runtime.decoder import Decoder
from runtime.engine import Engine
from runtime.kv_cache import kept
from runtime.providers import Device
from runtime.requests import Finished, Generation, Request
from runtime.sequence import Sequence
from tools.checkpoints import write_random_checkpoint
from tools.paddle_checkpoints import PaddleSizes, write_paddle_checkpoint
from tools.unlimited_checkpoints import UNLIMITED_OCR, UnlimitedSizes

LENGTHS = (37, 12, 61, 60, 2)  # tokens
STEPS = 7
PATIENCE = 60.0  # seconds until a test that hangs fails


@pytest.fixture(scope="module", params=["deepseek-ocr", "deepseek-ocr q4", "paddleocr-vl", "unlimited-ocr"])
def folder(request, random_checkpoint, random_model_folder, export_checkpoint, tmp_path_factory) -> Path:
    """Exports whose decoders count positions themselves, in 4 bits too, are given them, and have a window."""
    if request.param == "deepseek-ocr":
        return random_model_folder
    if request.param == "deepseek-ocr q4":
        return export_checkpoint(random_checkpoint, "q4")
    target = tmp_path_factory.mktemp(request.param) / "checkpoint"
    if request.param == "paddleocr-vl":
        write_paddle_checkpoint(target, PaddleSizes())
    else:
        write_random_checkpoint(target, UnlimitedSizes(window=5), layout=UNLIMITED_OCR)
    return export_checkpoint(target, "f32", request.param, request.param)


def prompts_for(manifest: Manifest) -> tuple[list[list[int]], list[np.ndarray]]:
    """Token ids, and positions; where a graph is given those, some axes run in another way through the first tokens."""
    random = np.random.default_rng(3)
    ids = [random.integers(10, 200, length).tolist() for length in LENGTHS]
    positions = [np.arange(length)[None] for length in LENGTHS]
    if manifest.sizes.rotary is not None and len(manifest.sizes.rotary.sections) > 1:
        positions = [np.tile(one, (len(manifest.sizes.rotary.sections), 1)) for one in positions]
        for one in positions[::2]:
            turned = min(9, one.shape[1] - 1)  # the last token stands at one number, or a step could not feed it
            one[1, :turned] = one[1, :turned][::-1]
    return ids, positions


def logits_of(folder: Path, device: Device, *, together: bool, first: int = 1) -> np.ndarray:
    """After each prompt and after steps behind them, [steps, rows, vocabulary]; ``first``: rows before that decode."""
    manifest = Manifest.load(folder)
    window = manifest.sizes.window
    decoder = Decoder(folder, manifest, device, slots=first + len(LENGTHS))
    # What a device's memory held before is no number to compute with, so nobody may look at it.
    for buffer in decoder.cache.buffers.values():
        if buffer.dtype.kind == "f":  # NumPy knows no bfloat16
            buffer.write(np.full(buffer.shape, np.nan, buffer.dtype))
    ids, positions = prompts_for(manifest)
    for row in range(first):
        decoder.prefill(row, decoder.embed([7, 8, 9]), window=window)
    decoder.make_room(max(LENGTHS) + STEPS + 2, rows=first)
    if together:
        embeddings = [decoder.embed(one)[:-1] for one in ids]
        decoder.prefill_together(first, embeddings, positions, [window] * len(ids))
        last = decoder.step(
            [9] * first + [one[-1] for one in ids],
            [3] * first + [len(one) - 1 for one in ids],
            [3] * first + [len(one) - 1 for one in ids],
        )[first:].copy()
    else:
        rows = [
            decoder.prefill_chunk(first + row, 0, decoder.embed(one), positions[row], window=window).copy()
            for row, one in enumerate(ids)
        ]
        if first:
            decoder.step([9] * first, [3] * first, [3] * first)
        last = np.stack(rows)
    found, random = [last], np.random.default_rng(4)
    for step in range(STEPS):
        lengths = [3 + kept(step + 1, window)] * first + [len(one) + kept(step, window) for one in ids]
        counted = [4 + step] * first + [len(one) + step for one in ids]
        found.append(decoder.step(random.integers(10, 200, len(lengths)).tolist(), lengths, counted)[first:].copy())
    return np.stack(found)


@pytest.mark.parametrize("first", [0, 1])
def test_logits_are_those_of_each_prompt_alone(folder, first) -> None:
    device = Device("cpu", 1)
    alone, together = (logits_of(folder, device, together=how, first=first) for how in (False, True))
    assert np.isfinite(together).all()
    assert np.abs(together - alone).max() / np.abs(alone).max() < 1e-5
    assert (together.argmax(-1) == alone.argmax(-1)).all()


def test_answers_are_those_of_each_request_alone_with_their_images(random_model_folder, picture) -> None:
    """Their views go through the tower in one pass, as on a GPU, while a step of another request is held."""
    asked = [
        Request(f"<image>{'word ' * (3 * i)}x", [picture(200 + 50 * i, 150)], settings(6 + 3 * i)) for i in range(7)
    ]
    found: list[list[list[int]]] = []
    for together in (0, 1 << 20, 300):
        with Model.open(random_model_folder, device="cpu", slots=8) as model:
            engine, runs = model.engine, list[int]()
            assert isinstance(engine, Engine)
            engine.state.together = together
            engine.encoder.batch = len(asked)
            decoder = engine.decoder
            score, several = decoder.score, decoder.prefill_together

            def held(*arguments: Any, score: Any = score, engine: Engine = engine) -> Any:
                until = time.monotonic() + PATIENCE
                while len(engine.state.rows) == 1 and not all(one.encoded for one in engine.state.waiting):
                    assert time.monotonic() < until, "the views are not encoded"
                    time.sleep(0.001)
                return score(*arguments)

            def counted(
                row: int, prompts: list[np.ndarray], *rest: Any, several: Any = several, runs: Any = runs
            ) -> None:
                runs.append(len(prompts))
                several(row, prompts, *rest)

            decoder.score, decoder.prefill_together = held, counted  # type: ignore[method-assign]
            with engine.paused():
                generations = [model.submit(one) for one in [Request("first", (), settings(60)), *asked]]
            found.append([tokens_of(one) for one in generations])
            assert bool(runs) == bool(together)
            assert sum(runs) <= len(asked)
            if together > 300:
                assert max(runs) > 2
    assert found == [found[0]] * 3


def settings(budget: int) -> InferenceSettings:
    small = {"crop_mode": False, "base_size": 128, "image_size": 128}
    return InferenceSettings().override({"max_new_tokens": budget, "stop_on_loop": False, **small})


def tokens_of(generation: Generation) -> list[int]:
    while not isinstance(event := generation.next_event(PATIENCE), Finished):
        assert event is not None
    assert event.error is None
    assert isinstance(generation, Sequence)
    return generation.tokens
