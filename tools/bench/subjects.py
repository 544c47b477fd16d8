"""What measures an export of ours, in a worker of its own.

Vision, prefill and decode are measured at ``runtime.decoder``, as peers' own benchmarks measure them. Page, overhead
and load are measured at ``runtime.model``: a page includes image preparation, logit filters, sampling and text.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from models.manifest import Manifest
from models.registry import family_of
from models.settings import InferenceSettings
from runtime.decoder import Decoder
from runtime.gpu import free_memory
from runtime.model import Model
from runtime.providers import find_device
from runtime.requests import Finished, Request
from runtime.vision import VisionTower

from .answer import Answer
from .blocks import BlocksSubject
from .material import endless_copy, page_image, peak_memory
from .plan import Plan
from .sharing import Sharing
from .step_watch import StepWatch
from .worker import Subject, plan_from

_GB = 10**9


def subject(setup: Mapping[str, Any]) -> Subject:
    """What measures in the worker."""
    folder, threads, plan = Path(setup["folder"]), int(setup["threads"]), plan_from(setup["plan"])
    made: dict[str, Any] = {
        "vision": _Vision, "decoder": _Decoder, "page": _Page, "blocks": BlocksSubject, "sharing": Sharing,
        "load": _Load, "answer": partial(Answer, full_attention=bool(setup.get("full_attention"))),
    }  # fmt: skip
    result: Subject = made[setup["kind"]](folder, threads, plan)
    return result


class _Vision:
    def __init__(self, folder: Path, threads: int, plan: Plan) -> None:
        self._manifest = Manifest.load(folder)
        self._family = family_of(self._manifest)
        self._tower = VisionTower(folder, self._manifest, find_device(plan.device, threads))

    def prepare(self, part: str, side: int) -> None:
        self.sample(part, side)

    def sample(self, part: str, side: int) -> dict[str, float]:
        view = Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8))
        # A family with views of fixed sizes cuts tiles as well; the last pass is that of the whole picture.
        feeds = self._family.prepare_image(view, {"base_size": side, "image_size": side}).passes[-1]()
        started = time.perf_counter()
        self._tower.encode(feeds)
        return {"s": time.perf_counter() - started}


class _Decoder:
    def __init__(self, folder: Path, threads: int, plan: Plan) -> None:
        self._plan = plan
        self._manifest = Manifest.load(folder)
        self._slots = max(1, *plan.rows)
        self._decoder = Decoder(folder, self._manifest, find_device(plan.device, threads), self._slots)
        self._filled = [0] * self._slots  # tokens in each row's cache
        self._rng = np.random.default_rng(0)

    def prepare(self, part: str, value: int) -> None:
        if part == "prefill":
            self.sample(part, value)
            return
        rows, context = self._shape(part, value)
        for row in range(rows):
            if self._filled[row] < context:
                self._decoder.prefill(row, self._prompt(context))
                self._filled[row] = context
        self._steps(rows, context + self._plan.steps - 1, 1)  # lets the cache grow before the clock runs
        self._steps(rows, context, 1)

    def sample(self, part: str, value: int) -> dict[str, float]:
        if part == "prefill":
            prompt = self._prompt(value)
            started = time.perf_counter()
            self._decoder.prefill(0, prompt)
            seconds = time.perf_counter() - started
            self._filled[0] = max(self._filled[0], value)
            return {"tokens/s": value / seconds}
        rows, context = self._shape(part, value)
        return {"tokens/s": rows * self._plan.steps / self._steps(rows, context, self._plan.steps)}

    def _shape(self, part: str, value: int) -> tuple[int, int]:
        """(rows, tokens in the cache of each)"""
        return (1, value) if part == "decode" else (value, self._plan.batch_context)

    def _steps(self, rows: int, context: int, steps: int) -> float:
        """Seconds of so many decode steps. Each row has tokens of its own, which go to different experts."""
        tokens = self._rng.integers(0, self._manifest.sizes.vocabulary, (steps, rows)).tolist()
        started = time.perf_counter()
        for step in range(steps):
            self._decoder.score(tokens[step], [context + step] * rows)
        return time.perf_counter() - started

    def _prompt(self, tokens: int) -> np.ndarray:
        ids = self._rng.integers(0, self._manifest.sizes.vocabulary, tokens).tolist()
        embeddings: np.ndarray = self._decoder.embed(ids)
        return embeddings


class _Page:
    def __init__(self, folder: Path, threads: int, plan: Plan) -> None:
        self._plan = plan
        self._copy = tempfile.TemporaryDirectory(prefix=".bench-", dir=folder.parent)
        slots = max(1, *plan.busy_rows)
        self._model = Model.open(
            endless_copy(folder, Path(self._copy.name)), device=plan.device, threads=threads, slots=slots
        )
        engine: Any = self._model.engine  # of one device
        self._watch = StepWatch(engine.decoder)

    def prepare(self, part: str, value: int) -> None:
        # With the shapes of the measurement: kernels choose their memory by shape.
        if part == "overhead":
            self._decode(value, 4)
        else:
            self._read(replace(self._plan, page_tokens=4))

    def sample(self, part: str, value: int) -> dict[str, float]:
        return self._decode(value, self._plan.steps) if part == "overhead" else self._read(self._plan)

    def _decode(self, rows: int, steps: int) -> dict[str, float]:
        """Whole turns of the engine with so many rows: filters, sampling and text as requests have them by default."""
        words = [" ".join(str(10 * i + row) for i in range(self._plan.batch_context // 2)) for row in range(rows)]
        # Rows begin one after the other: the first rows go on until the last row has had its steps.
        settings = InferenceSettings(max_new_tokens=steps + rows, stop_on_loop=False)
        self._watch.start()
        with self._model.engine.paused():  # the engine sees none before all are queued: a small model ends in 2 ms
            running = [self._model.submit(Request(prompt, (), settings)) for prompt in words]
        for one in running:
            while not isinstance(event := one.next_event(), Finished):
                pass
            if event.error is not None:
                raise RuntimeError(event.error)
        return self._watch.share(rows)

    def _read(self, plan: Plan) -> dict[str, float]:
        image = page_image(plan)
        started = time.perf_counter()
        result = self._model.read(image, max_new_tokens=plan.page_tokens, stop_on_loop=False)
        seconds = time.perf_counter() - started
        if len(result.tokens) != plan.page_tokens:
            finished = result.finished
            raise RuntimeError(f"the page ended after {len(result.tokens)} tokens: {finished.detail} {finished.error}")
        times = result.finished.timings
        stages = {"s vision": times.vision, "s prefill": times.prefill, "s decode": times.decode}
        return {"s": seconds, **stages, "GB peak": peak_memory()}


class _Load:
    def __init__(self, folder: Path, threads: int, plan: Plan) -> None:
        self._folder, self._threads, self._device = folder, threads, plan.device

    def prepare(self, part: str, value: int) -> None:
        for file in self._folder.iterdir():  # into the page cache
            with file.open("rb", buffering=0) as source:
                while source.read(1 << 24):
                    pass

    def sample(self, part: str, value: int) -> dict[str, float]:
        on_card = self._device.startswith("cuda")
        before = free_memory(0) if on_card else None
        started = time.perf_counter()
        # On a card with four slots: without a number the cache fills the card, and its size would be measured.
        model = Model.open(self._folder, device=self._device, threads=self._threads, slots=4 if on_card else None)
        seconds = time.perf_counter() - started
        gc.collect()
        memory = psutil.Process().memory_full_info()
        after = free_memory(0) if on_card else None
        model.close()
        found = {"s": seconds, "GB resident": memory.rss / _GB, "GB private": memory.uss / _GB}
        return found if before is None or after is None else {**found, "GB on the card": (before - after) / _GB}
