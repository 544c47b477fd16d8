"""This project as a contender: the runtime on one exported folder.

Vision, prefill and decode are measured at ``runtime.decoder``, page, overhead and load at ``runtime.model``: the page
has everything in it (image preparation, logit filters, sampling, text), the others compare with what peers' own
benchmarks measure.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from models.manifest import FILE_NAME, Manifest

from .plan import Case, Kind, Plan
from .turns import Memory
from .worker import Subject, WorkerContender, plan_from

_GB = 10**9


class Ours(WorkerContender):
    """One exported folder on the plan's device."""

    module = __name__

    def __init__(self, folder: Path, threads: int, plan: Plan) -> None:
        super().__init__({"folder": str(folder), "threads": threads}, plan)
        self.folder = folder
        self.manifest = Manifest.load(folder)
        self.vision_dtype = vision_dtype(folder, self.manifest)

    def name(self, kind: Kind) -> str:
        """See ``turns.Contender``; exports that differ in the decoder only have the same vision tower."""
        return f"ours vision {self.vision_dtype}" if kind == "vision" else f"ours {self.manifest.dtype}"

    def can(self, case: Case) -> bool:
        """See ``turns.Contender``: a context longer than the model's is no case, nor an answer without a window."""
        if case.part == "answer" and self.manifest.sizes.window is None:
            return False
        prompt = self._plan.prefills[-1]
        needed = {
            "decode": case.value + self._plan.steps, "prefill": case.value, "answer": prompt + case.value,
        }.get(case.part, 0)  # fmt: skip
        return case.part not in ("export", "layout", "server") and needed <= self.manifest.max_length

    def memory(self, kind: Kind) -> Memory:
        """See ``turns.Contender``: the weights as they are computed with, and room for activations and cache."""
        sizes = {name: info.size for name, info in self.manifest.files.items()}
        vision = sizes["vision.onnx.data"] * (2 if self.vision_dtype == "f16" else 1) + _GB
        decoder = sizes["decoder.onnx.data"] + sizes["embed.onnx.data"]
        decoder = decoder * (2 if self.manifest.dtype == "f16" else 1) + _GB // 2
        held = {"vision": vision, "decoder": decoder, "answer": decoder}.get(kind, vision + decoder)
        return Memory(int(held * 1.1), held)

    def sample(self, case: Case) -> Mapping[str, float]:
        """See ``turns.Contender``: each load in a process of its own."""
        values = super().sample(case)
        if case.part == "load":
            self.close()
        return values


def vision_dtype(folder: Path, manifest: Manifest) -> str:
    """How the vision tower's weights are stored: the manifest does not say, the graph does."""
    graph = (folder / "vision.onnx").read_bytes()
    if b"MatMulNBits" in graph or b"DynamicQuantizeMatMul" in graph:
        return "q8"
    return manifest.dtype if manifest.dtype in ("f32", "bf16") else "f16"


def endless_copy(folder: Path, target: Path) -> Path:
    """A copy of an export whose answers end at their budget only: its manifest names no end token.

    Random weights end an answer anywhere, and then page times would not compare. Large files are hard links.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        copy = target / file.name
        copy.unlink(missing_ok=True)
        if file.name == FILE_NAME:
            continue
        try:
            os.link(file, copy)
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, copy)
    manifest = Manifest.load(folder)
    manifest.model_copy(update={"tokens": manifest.tokens.model_copy(update={"eos": ()})}).save(target)
    return target


def page_image(plan: Plan, seed: int | None = None) -> Image.Image:
    """Dark lines on white paper; without a seed another page each time, or a cache of features would answer."""
    width, height = plan.page
    rng = np.random.default_rng(seed)
    paper = np.full((height, width, 3), 255, np.uint8)
    for top in range(height // 20, height - height // 20, 28):
        ink = rng.random((14, width - 2 * (width // 12))) < 0.4
        paper[top : top + 14, width // 12 : width - width // 12][ink[: paper[top : top + 14].shape[0]]] = 20
    return Image.fromarray(paper)


def peak_memory() -> float:
    """Largest resident memory of this process so far, GB; mapped files count."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / _GB


# The child's side.


def subject(setup: Mapping[str, Any]) -> Subject:
    """What measures in the worker."""
    from .answer import Answer
    from .blocks import Blocks
    from .sharing import Sharing

    folder, threads, plan = Path(setup["folder"]), int(setup["threads"]), plan_from(setup["plan"])
    made: dict[str, Any] = {
        "vision": _Vision, "decoder": _Decoder, "page": _Page, "blocks": Blocks, "sharing": Sharing, "load": _Load,
        "answer": partial(Answer, full_attention=bool(setup.get("full_attention"))),
    }  # fmt: skip
    result: Subject = made[setup["kind"]](folder, threads, plan)
    return result


class _Vision:
    def __init__(self, folder: Path, threads: int, plan: Plan) -> None:
        from models.registry import family_of
        from runtime.providers import find_device
        from runtime.vision import VisionTower

        self._manifest = Manifest.load(folder)
        self._family: Any = family_of(self._manifest)
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
        from runtime.decoder import Decoder
        from runtime.providers import find_device

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
        self._steps(rows, context + self._plan.steps - 1, 1)  # the cache grows in steps: let it do so now
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
        """Seconds of so many decode steps, each row with tokens of its own: other tokens go to other experts."""
        tokens = self._rng.integers(0, self._manifest.sizes.vocabulary, (steps, rows)).tolist()
        started = time.perf_counter()
        for step in range(steps):
            self._decoder.score(tokens[step], [context + step] * rows)
        return time.perf_counter() - started

    def _prompt(self, tokens: int) -> np.ndarray:
        return self._decoder.embed(self._rng.integers(0, self._manifest.sizes.vocabulary, tokens).tolist())


class _Page:
    def __init__(self, folder: Path, threads: int, plan: Plan) -> None:
        import tempfile

        from runtime.model import Model

        self._plan = plan
        self._copy = tempfile.TemporaryDirectory(prefix=".bench-", dir=folder.parent)
        slots = max(1, *plan.busy_rows)
        self._model = Model.open(
            endless_copy(folder, Path(self._copy.name)), device=plan.device, threads=threads, slots=slots
        )
        self._watch = StepWatch(self._model)

    def prepare(self, part: str, value: int) -> None:
        # The same sizes as what is measured: kernels choose their memory by shape.
        if part == "overhead":
            self._decode(value, 4)
        else:
            self._read(replace(self._plan, page_tokens=4))

    def sample(self, part: str, value: int) -> dict[str, float]:
        return self._decode(value, self._plan.steps) if part == "overhead" else self._read(self._plan)

    def _decode(self, rows: int, steps: int) -> dict[str, float]:
        """Whole turns of the engine with so many rows: filters, sampling and text as requests have them by default."""
        from models.settings import InferenceSettings
        from runtime.requests import Finished, Request

        words = [" ".join(str(10 * i + row) for i in range(self._plan.batch_context // 2)) for row in range(rows)]
        # Rows begin one after the other: the first ones go on until the last has had its steps.
        settings = InferenceSettings(max_new_tokens=steps + rows, stop_on_loop=False)
        self._watch.start()
        with self._model._engine._changed:  # the engine sees none before all are queued: a small model ends in 2 ms
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


class StepWatch:
    """Times the engine's turns, and how much of each is spent inside ONNX Runtime.

    A turn lasts from one decode step's beginning to the next one's: everything that happens in between is in it.
    """

    def __init__(self, model: Any) -> None:
        decoder = model._engine._decoder
        self._turns: list[tuple[int, float, float]] = []  # rows, when the step began, seconds inside until then
        self._inside = 0.0
        decoder._embed, decoder._session = _Timed(decoder._embed, self), _Timed(decoder._session, self)
        self._score = decoder.score
        decoder.score = self.score

    def start(self) -> None:
        """Forget what was timed."""
        self._turns.clear()

    def score(self, token_ids: list[int], *rest: Any) -> Any:
        """In place of the decoder's own."""
        self._turns.append((len(token_ids), time.perf_counter(), self._inside))
        return self._score(token_ids, *rest)

    def inside(self, seconds: float) -> None:
        """So long was a session at work."""
        self._inside += seconds

    def share(self, rows: int) -> dict[str, float]:
        """Over all turns that began and ended with so many rows; the first, in which bindings are made, left out."""
        turns = [
            (after - before, used_after - used_before)
            for (now, before, used_before), (then, after, used_after) in pairwise(self._turns)
            if now == then == rows
        ][1:]
        whole, inside = (sum(column) for column in zip(*turns, strict=True))
        return {
            "% outside ONNX Runtime": 100 * (1 - inside / whole),
            "ms outside": 1000 * (whole - inside) / len(turns),
            "ms per step": 1000 * whole / len(turns),
        }


class _Timed:
    """A session that tells how long it is at work."""

    def __init__(self, session: Any, watch: StepWatch) -> None:
        self._session, self._watch = session, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, *arguments: Any) -> None:
        started = time.perf_counter()
        self._session.run_with_iobinding(*arguments)
        self._watch.inside(time.perf_counter() - started)


class _Load:
    def __init__(self, folder: Path, threads: int, plan: Plan) -> None:
        self._folder, self._threads, self._device = folder, threads, plan.device

    def prepare(self, part: str, value: int) -> None:
        for file in self._folder.iterdir():  # into the page cache
            with file.open("rb", buffering=0) as source:
                while source.read(1 << 24):
                    pass

    def sample(self, part: str, value: int) -> dict[str, float]:
        from runtime.gpu import free_memory
        from runtime.model import Model

        on_card = self._device.startswith("cuda")
        before = free_memory(0) if on_card else None
        started = time.perf_counter()
        # On a card with few slots: by itself it takes as many as its memory holds, and that would be what is measured.
        model = Model.open(self._folder, device=self._device, threads=self._threads, slots=4 if on_card else None)
        seconds = time.perf_counter() - started
        gc.collect()
        memory = psutil.Process().memory_full_info()
        after = free_memory(0) if on_card else None
        model.close()
        found = {"s": seconds, "GB resident": memory.rss / _GB, "GB private": memory.uss / _GB}
        return found if before is None or after is None else {**found, "GB on the card": (before - after) / _GB}
