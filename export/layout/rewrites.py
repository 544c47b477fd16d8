"""Changes of transformers' modules before tracing: the same values, computed cheaper or with a defined order.

All changes are exact but for the order of sums: values differ in the last digits of float32.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from torch import nn


@contextmanager
def rewritten_functions(kind: str) -> Iterator[None]:
    """Replace functions that the modules call, while a detector of this kind is traced."""
    with ExitStack() as stack:
        if kind == "pp_doclayout_v2":
            stack.enter_context(patch.object(torch, "argsort", stable_argsort))
        if kind == "pp_doclayout_v3":
            module = importlib.import_module("transformers.models.pp_doclayout_v3.modeling_pp_doclayout_v3")
            stack.enter_context(patch.object(module, "mask_to_box_coordinate", mask_boxes))
        yield


def stable_argsort(values: torch.Tensor, dim: int = -1, descending: bool = False) -> torch.Tensor:
    """Indices that sort 0s and 1s, equal ones in their order.

    V2 sorts its queries by whether their score is enough. PyTorch and ONNX Runtime leave equal ones in different
    orders, and the order network depends on a query's place. A stable sort has no translation to ONNX.
    """
    if not descending:
        raise NotImplementedError("V2 sorts downwards only")
    count = values.shape[dim]
    return torch.topk(values * (2 * count) - torch.arange(count, device=values.device), count, dim=dim).indices


def mask_boxes(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[b, q, h, w] masks -> [b, q, 4] centre, width and height of the box around each, 0..1; 0 for an empty one.

    The module numbers every pixel of every mask. Whether a row or a column has any pixel gives the same box from arrays
    of a two-hundredth of the size, and saves a quarter of a run's memory.
    """
    height, width = mask.shape[-2:]
    some = mask.to(dtype)
    columns, rows = some.amax(-2), some.amax(-1)
    left, right = _ends(columns, width)
    top, bottom = _ends(rows, height)
    there = rows.amax(-1)
    left, right, top, bottom = (
        left * there / width,
        right * there / width,
        top * there / height,
        bottom * there / height,
    )
    return torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], dim=-1)


def fold_norms(model: nn.Module) -> None:
    """Fold every normalisation into the convolution before it, and add up RepVGG's two convolutions.

    ONNX Runtime folds normalisations when it loads a graph, in float32; here they are folded once, in float64, before
    float16 weights are rounded.
    """
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (name, conv), (beside, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and _is_norm(norm):
                setattr(parent, name, _folded(conv, norm))
                setattr(parent, beside, nn.Identity())
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RepVggBlock"):
                block: Any = child
                setattr(parent, name, nn.Sequential(_added(block.conv1.conv, block.conv2.conv), block.activation))


def _ends(some: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[b, q, n] of 0s and 1s -> [b, q] the first 1 and the place after the last."""
    place = torch.arange(count, dtype=some.dtype, device=some.device)
    return count - (some * (count - place)).amax(-1), (some * (place + 1)).amax(-1)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) or type(module).__name__.endswith("FrozenBatchNorm2d")


def _folded(conv: nn.Conv2d, norm: Any) -> nn.Conv2d:
    """One convolution in place of a convolution and a normalisation."""
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + getattr(norm, "eps", 1e-5))
    bias = 0.0 if conv.bias is None else conv.bias.double()
    shift = norm.bias.double() + (bias - norm.running_mean.double()) * scale
    return _like(conv, conv.weight.double() * scale[:, None, None, None], shift)


def _added(three: nn.Conv2d, one: nn.Conv2d) -> nn.Conv2d:
    """A 3 x 3 convolution that equals the sum of a 3 x 3 and a 1 x 1 one."""
    assert three.bias is not None
    assert one.bias is not None
    weight = three.weight.double().clone()
    weight[:, :, 1, 1] += one.weight[:, :, 0, 0].double()
    return _like(three, weight, three.bias.double() + one.bias.double())


def _like(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    new = copy.deepcopy(conv)
    new.weight = nn.Parameter(weight.float(), requires_grad=False)
    new.bias = nn.Parameter(bias.float(), requires_grad=False)
    return new
