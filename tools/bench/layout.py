"""The layout step's detector as a contender: our export of one, and transformers' module with the same weights.

A sample is one page from its picture to its regions, preparation and rules among it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .material import page_image, peak_memory
from .plan import Case, Kind, Plan
from .turns import Memory
from .worker import WorkerContender, plan_from


class DetectorContender(WorkerContender):
    """A detector: our export of one, or transformers' module with the checkpoint that an export was made of."""

    module = __name__

    def __init__(self, threads: int, plan: Plan, *, folder: Path | None = None, checkpoint: Path | None = None) -> None:
        """folder : an export; or checkpoint : for transformers."""
        what = {"checkpoint": str(checkpoint)} if folder is None else {"folder": str(folder)}
        super().__init__({**what, "threads": threads}, plan)
        self._is_ours = folder is not None

    def name(self, kind: Kind) -> str:
        """See ``turns.Contender``."""
        return "ours, layout" if self._is_ours else "transformers f32, layout"

    def can(self, case: Case) -> bool:
        """See ``turns.Contender``."""
        return case.part == "layout"

    def memory(self, kind: Kind) -> Memory:
        """See ``turns.Contender``."""
        return Memory(2 * 10**9, 10**9) if self._is_ours else Memory(3 * 10**9, 3 * 10**9)


class _Pages:
    """Inside the child."""

    def __init__(self, look: Callable[[Any], object], plan: Plan) -> None:
        self._look, self._page = look, page_image(plan)

    def prepare(self, part: str, value: int) -> None:
        self._look(self._page)

    def sample(self, part: str, value: int) -> Mapping[str, float]:
        """Seconds of the clock and of the processors, and the process's peak memory."""
        started, busy = time.perf_counter(), time.process_time()
        self._look(self._page)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        return {"s": seconds, "CPU s": busy, "GB peak": peak_memory()}


def subject(setup: Mapping[str, Any]) -> _Pages:
    """See ``worker``."""
    plan = plan_from(setup["plan"])
    if "folder" in setup:
        from runtime.layout import LayoutModel

        return _Pages(LayoutModel.open(Path(setup["folder"]), plan.device, setup["threads"]).detect, plan)
    import torch

    from export.checkpoint import Checkpoint
    from export.layout.loading import load_detector
    from models.layout.boxes import regions
    from models.layout.decode import decode
    from models.layout.detectors import DETECTORS
    from models.layout.resize import pixel_values
    from tools.layout_parity import run_module

    torch.set_num_threads(setup["threads"])
    checkpoint = Checkpoint(Path(setup["checkpoint"]))
    (detector,) = [one for one in DETECTORS.values() if one.kind == checkpoint.config["model_type"]]
    loaded = load_detector(checkpoint, detector)

    def look(page: Any) -> object:
        outputs = run_module(loaded.model, pixel_values(page, 800, 800))
        return regions(decode(outputs, *page.size), loaded.rules, *page.size)

    return _Pages(look, plan)
