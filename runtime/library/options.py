"""Options of a program about the models that it opens, from its command line and config.toml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model to open, from which files, and how."""

    model: str = "deepseek-ocr"  # model loaded at the start
    device: str = "cpu"
    engines: int = 1  # engines of a model: one for each card of ``cuda:all``
    dtype: str | None = None
    model_config: Path | None = None
    tokenizer: Path | None = None
    weights: Path | None = None
    adapter: Path | None = None
    slots: int = 0
    threads: int = 0
    vision_cache_mb: float = 64.0
    max_context: int = 0
    max_queue: int = 64
    warm_up: Literal["auto", "none", "quick", "full"] = "auto"
    export_on_demand: Literal["on", "off"] = "on"
    stale_exports: Literal["say", "refuse", "export"] = "say"
    many: bool = False  # see ``runtime.model.Model.open``
    switch_models: Literal["on", "off"] = "on"

    @property
    def capacity(self) -> int:
        """Most requests for a model at once, running and waiting."""
        return (self.slots or 4) * self.engines + self.max_queue
