"""Runs side by side, one a core, each with pages of its own, which meet at the mean of their states now and then.

That is local SGD (https://arxiv.org/abs/1805.09767): two threads of one run wait for each other at every operator, two
runs never do until they meet.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .train import save_state


class ApartError(ValueError):
    """Runs that cannot meet."""


def join_runs(run_dirs: Sequence[Path]) -> int:
    """Write the mean of the states (masters, averages, moments) into every run folder; return the step they go on from.

    Raises ApartError where the runs are not at the same step: the pages of one would count more.
    """
    states = [torch.load(folder / "state.pt", map_location="cpu", weights_only=True) for folder in run_dirs]
    steps = {str(folder): state["step"] for folder, state in zip(run_dirs, states, strict=True)}
    if len(set(steps.values())) > 1:
        told = ", ".join(f"{folder} at step {step}" for folder, step in steps.items())
        raise ApartError(f"{told}; let all of them train to one step (--steps)")
    joined = mean_of(states)  # pages and seconds stay those of the first run
    for folder in run_dirs:
        save_state(joined, folder)
    return int(joined["step"])


def mean_of(values: Sequence[Any]) -> Any:
    """Return the mean of every tensor of nested values, and everything else as the first has it."""
    first = values[0]
    if isinstance(first, Tensor) and first.is_floating_point():
        return torch.stack(list(values)).mean(0)
    if isinstance(first, dict):
        return {key: mean_of([value[key] for value in values]) for key in first}
    if isinstance(first, list | tuple):
        return [mean_of(parts) for parts in zip(*values, strict=True)]
    return first
