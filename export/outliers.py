"""Plants outlier channels into a checkpoint, to measure 8-bit activations with them; for ``--report``.

Outliers break 8-bit activations, and random weights have none: in trained transformers a few channels are 20 to 100
times larger than the rest (LLM.int8(), arXiv 2208.07339), which leaves the others little of the range. So the report
measures the vision tower a second time, with outlier channels in each matrix's input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .weights import Load, as_float32

# A power of two, so that scaling is exact; above the 50 of the project's measurements.
FACTOR = 64.0
# One channel in so many is an outlier, and at least one.
_SPACING = 200


@dataclass(frozen=True)
class OutlierSite:
    """Channels between the layer that writes them and the layer that reads them.

    written : tensors with the channels along their first axis, from ``first`` on. read : matrices with them along their
    last axis. channels : number of channels.
    """

    written: tuple[str, ...]
    read: tuple[str, ...]
    channels: int
    first: int = 0


def block_sites(
    *, norm1: str, qkv: Sequence[str], proj: str, norm2: str, up: str, down: str, width: int, mlp_width: int
) -> Iterator[OutlierSite]:
    """The four inputs of a transformer block's matrices; arguments are paths of its layers in the checkpoint.

    qkv : one packed matrix or three. Every layer but the gated kinds has a bias.
    """

    def parameters(at: str) -> tuple[str, str]:
        return f"{at}.weight", f"{at}.bias"

    yield OutlierSite(parameters(norm1), tuple(f"{at}.weight" for at in qkv), width)
    values_from = 2 * width if len(qkv) == 1 else 0
    yield OutlierSite(parameters(qkv[-1]), (f"{proj}.weight",), width, values_from)
    yield OutlierSite(parameters(norm2), (f"{up}.weight",), width)
    yield OutlierSite(parameters(up), (f"{down}.weight",), mlp_width)


def planted(load: Load, sites: Sequence[OutlierSite]) -> Load:
    """A loader of the checkpoint with a few channels of each site FACTOR times as large.

    The matrices that read these channels are scaled down by as much, so that the model computes the same in float,
    except for the activation function inside an MLP.
    """
    rng = np.random.default_rng(0)
    rows: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    columns: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    for site in sites:
        chosen = rng.choice(site.channels, max(1, site.channels // _SPACING), replace=False)
        for name in site.written:
            rows[name].append(site.first + chosen)
        for name in site.read:
            columns[name].append(chosen)

    def scaled(name: str) -> np.ndarray:
        array = load(name)
        if name not in rows and name not in columns:
            return array
        array = as_float32(array).astype(np.float32, copy=True)
        for chosen in rows[name]:
            array[chosen] *= FACTOR
        for chosen in columns[name]:
            array[..., chosen] /= FACTOR
        return array

    return scaled
