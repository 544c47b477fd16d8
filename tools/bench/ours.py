"""This project as a contender: the runtime on one exported folder. ``subjects`` measures in the worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.manifest import Manifest

from .plan import Case, Kind, Plan
from .turns import Memory
from .worker import WorkerContender

_GB = 10**9


class Ours(WorkerContender):
    """One exported folder on the plan's device."""

    module = "tools.bench.subjects"

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
