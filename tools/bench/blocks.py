"""A page that is read block by block, beside its blocks read alone, one after the other: what the batch is worth.

A detector that knows the page takes no time, so what is measured is the reading; for the time of real detectors see
``tools/docs/layout.md``.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from models.layout.regions import Region
from models.layout.rules import DetectionRules
from runtime.model import Model

from .material import endless_copy, page_image
from .plan import Plan


class BlocksSubject:
    """See ``worker.Subject``. Cases: the number of blocks, below each other."""

    def __init__(self, folder: Path, threads: int, plan: Plan) -> None:
        self._plan = plan
        self._copy = tempfile.TemporaryDirectory(prefix=".bench-", dir=folder.parent)
        copy = endless_copy(folder, Path(self._copy.name))
        self._strips = _Strips(max(plan.blocks))
        self._model = Model.open(
            copy, device=plan.device, threads=threads, slots=max(plan.blocks), vision_cache_mb=0, layout=self._strips
        )

    def prepare(self, part: str, value: int) -> None:
        self.sample(part, value)

    def sample(self, part: str, value: int) -> dict[str, float]:
        image, self._strips.count = page_image(self._plan), value
        budget: dict[str, Any] = {"max_new_tokens": self._plan.block_tokens, "stop_on_loop": False}
        started = time.perf_counter()
        page = self._model.read(image, task="document", **budget)
        together = time.perf_counter() - started
        if len(page.tokens) != value * self._plan.block_tokens:
            raise RuntimeError(f"the page ended after {len(page.tokens)} tokens")
        started = time.perf_counter()
        for block in page.finished.blocks:
            self._model.read(image.crop(block.box), self._model.pages.prompts["text"], **budget)
        alone = time.perf_counter() - started
        return {"s": together, "s, blocks alone": alone, "% of alone": 100 * together / alone}


class _Strips:
    """See ``runtime.pages.Detector``: so many texts of equal height."""

    def __init__(self, count: int) -> None:
        self.count = count

    def detect(self, image: Image.Image, rules: DetectionRules | None = None) -> list[Region]:
        high = image.height / self.count
        return [Region("text", (0, i * high, image.width, (i + 1) * high), 1.0, i) for i in range(self.count)]
