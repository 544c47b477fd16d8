"""Streams weights from a checkpoint to a graph's data file: one recipe per parameter, one chunk in memory.

A graph is declared with ``Weight`` parameters, whose recipes name their checkpoint tensors. ``DataFile`` writes them
one after another, and the graph keeps references into the file. So an export's peak memory is that of the largest
chunk, whatever the model's size, and two graphs can share one data file.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn, Self

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnxscript import nn
from tqdm import tqdm

from .export_errors import ExportError

Load = Callable[[str], np.ndarray]

# Alignment of large tensors in the file, so that every system can map them (Windows maps at 64 KiB steps).
_MAP_ALIGNMENT = 64 * 1024
_SMALL_ALIGNMENT = 64
_LARGE = 1 << 20  # bytes


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a parameter is made.

    sources : checkpoint tensor names with the shapes they must have.
    chunks : given a loader, yields arrays of any float type that follow each other in the parameter's memory.
    """

    sources: Mapping[str, tuple[int, ...]]
    chunks: Callable[[Load], Iterator[np.ndarray]]


@dataclass(frozen=True, eq=False)
class JointRecipe:
    """How several parameters (quantised values and their scales) are made from tensors that are read once.

    sources : see ``Recipe``.
    chunks : given a loader, yields for each parameter the array that follows in its memory.
    """

    sources: Mapping[str, tuple[int, ...]]
    chunks: Callable[[Load], Iterator[tuple[np.ndarray, ...]]]


class NotedLoad:
    """A loader that notes what it read, so that an error about a chunk can name the checkpoint's tensors."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._names: list[str] = []

    def __call__(self, name: str) -> np.ndarray:
        self._names.append(name)
        return self._load(name)

    def take(self) -> str:
        """Names of tensors read since the last call."""
        names, self._names = self._names, []
        return " or ".join(names)


class Weight(nn.Parameter):
    """A graph parameter with the recipe that fills it."""

    def __init__(
        self, shape: Sequence[int], recipe: Recipe | JointRecipe, dtype: ir.DataType = ir.DataType.FLOAT, part: int = 0
    ) -> None:
        """part : index of the parameter in a joint recipe."""
        super().__init__(shape, dtype=dtype)
        self.part = part
        self.sizes = tuple(shape)
        self.stored_type = dtype
        self.recipe = recipe

    def key(self, name: str) -> str:
        """Key in a data file: tables may differ in type between graphs that share the file."""
        return f"{name}:{self.stored_type.name}"

    @property
    def nbytes(self) -> int:
        """Bytes in the data file."""
        return math.prod(self.sizes) * self.stored_type.numpy().itemsize

    @property
    def large(self) -> bool:
        """Whether the weight is aligned, to be mapped from the data file."""
        return self.nbytes >= _LARGE


def copied(name: str, shape: tuple[int, ...]) -> Recipe:
    """The tensor, unchanged."""
    return Recipe({name: shape}, lambda load: iter((load(name),)))


def joined(names: Sequence[str], sizes: Sequence[int]) -> Recipe:
    """Vectors one after the other, as the biases of packed matrices."""
    sources = {name: (size,) for name, size in zip(names, sizes, strict=True)}
    return Recipe(sources, lambda load: (load(name) for name in names))


def transposed(names: Sequence[str], outputs: Sequence[int], inputs: int) -> Recipe:
    """Linear weights [out, in] side by side as one right-hand matrix [in, sum of outs] for MatMul."""
    sources = {name: (out, inputs) for name, out in zip(names, outputs, strict=True)}

    def chunks(load: Load) -> Iterator[np.ndarray]:
        if len(names) == 1:
            yield load(names[0]).T
        else:
            yield np.concatenate([load(name) for name in names]).T

    return Recipe(sources, chunks)


def summed_frames(name: str, shape: tuple[int, ...]) -> Recipe:
    """A convolution over equal frames [out, in, frames, ...] as one over a single picture, [out, in, ...]."""
    return Recipe({name: shape}, lambda load: iter((as_float32(load(name)).sum(axis=2),)))


def computed(array: np.ndarray) -> Recipe:
    """A computed table, without checkpoint tensors."""
    return Recipe({}, lambda load: iter((array,)))


def expert_gate_up(at: str, experts: int, width: int, hidden: int) -> Recipe:
    """[experts, 2 * width, hidden] with gate and up rows interleaved, as MoE's ``swiglu_fusion=1`` reads them."""
    names = [(f"{at}.{i}.gate_proj.weight", f"{at}.{i}.up_proj.weight") for i in range(experts)]

    def chunks(load: Load) -> Iterator[np.ndarray]:
        for gate, up in names:
            yield np.stack([load(gate), load(up)], axis=1)

    return Recipe({name: (width, hidden) for pair in names for name in pair}, chunks)


def expert_down(at: str, experts: int, width: int, hidden: int) -> Recipe:
    """[experts, hidden, width]."""
    names = [f"{at}.{i}.down_proj.weight" for i in range(experts)]
    return Recipe(dict.fromkeys(names, (hidden, width)), lambda load: (load(name) for name in names))


def stacked(names: Sequence[str], outputs: Sequence[int], inputs: int) -> Recipe:
    """Linear weights [out, in] below each other: [sum of outs, in]."""
    sources = {name: (out, inputs) for name, out in zip(names, outputs, strict=True)}
    return Recipe(sources, lambda load: (load(name) for name in names))


Change = Callable[[str, np.ndarray], np.ndarray]


def reordered(prefixes: tuple[str, ...], order: np.ndarray) -> Change:
    """For ``read_otherwise``: other orders of the rows of tensors whose names begin with one of ``prefixes``.

    order : row numbers within a head, [head_dim], applied to each head of a tensor.
    """

    def change(name: str, tensor: np.ndarray) -> np.ndarray:
        if not name.startswith(prefixes):
            return tensor
        heads = tensor.reshape(-1, len(order), *tensor.shape[1:])
        return np.ascontiguousarray(heads[:, order]).reshape(tensor.shape)

    return change


def as_float32(array: np.ndarray) -> np.ndarray:
    """Widen; bfloat16 is the upper half of float32, and a shift is several times faster than astype."""
    if array.dtype != ml_dtypes.bfloat16:
        return array.astype(np.float32, copy=False)
    bits = array.view(np.uint16).astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def convert(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """A contiguous copy in the target float type.

    Raises
    ------
    ExportError
        when a value is not finite, or outside of the target type's range.
    """
    if array.dtype == ml_dtypes.bfloat16:
        array = as_float32(array)
    if dtype.kind in "iu":  # quantised already
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):  # checked below, with a better message
        result = np.ascontiguousarray(array.astype(dtype, copy=False))
    if not np.isfinite(result).all():
        if not np.isfinite(array).all():
            raise ExportError(f"{name} has values that are not finite; the checkpoint is damaged: download it again")
        worst = np.abs(array).max()
        raise ExportError(
            f"{name} has values that {dtype} cannot hold (largest {worst:g}); export with --vision-dtype f32 if it "
            "belongs to the vision tower, else with --dtype f32, or bf16 for a GPU"
        )
    return result


@dataclass(frozen=True, slots=True)
class Stored:
    """The place of a written parameter in the data file."""

    dtype: ir.DataType
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass
class DataFile:
    """One external data file, written front to back and hashed on the way."""

    path: Path
    stored: dict[str, Stored] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._file = self.path.open("wb")
        self._hash = hashlib.sha256()
        self._size = 0
        self._made: dict[JointRecipe, defaultdict[int, list[np.ndarray]]] = {}  # chunks to write, by part
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, weight: Weight, load: Load, bar: tqdm[NoReturn] | None = None) -> None:
        """Write one parameter, chunk by chunk.

        Raises
        ------
        ExportError
            when a value does not fit the stored type.
        """
        dtype, expected = weight.stored_type.numpy(), weight.nbytes
        self._write(b"\0" * (-self._size % (_MAP_ALIGNMENT if weight.large else _SMALL_ALIGNMENT)))
        offset = self._size
        noted = NotedLoad(load)
        for chunk in self._chunks(weight, noted):
            data = convert(chunk, dtype, noted.take() or name)
            self._write(data.reshape(-1).view(np.uint8).data)
            if bar is not None:
                bar.update(data.nbytes)
        if self._size - offset != expected:
            raise AssertionError(f"{name}: the recipe gave {self._size - offset} bytes for shape {weight.sizes}")
        self.stored[name] = Stored(weight.stored_type, weight.sizes, offset, expected)

    def _chunks(self, weight: Weight, load: Load) -> Iterator[np.ndarray]:
        """The chunks of a parameter. A joint recipe runs once, for the first of its parameters.

        The other parameters' chunks are kept until their turn: scales of quantised weights, at most a tenth of the
        values.
        """
        recipe = weight.recipe
        if isinstance(recipe, Recipe):
            yield from recipe.chunks(load)
        elif recipe in self._made:
            yield from self._made[recipe].pop(weight.part)
        else:
            rest = self._made[recipe] = defaultdict(list)
            for chunks in recipe.chunks(load):
                for part, chunk in enumerate(chunks):
                    if part != weight.part:
                        rest[part].append(chunk)
                yield chunks[weight.part]

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def tensor(self, name: str) -> ir.ExternalTensor:
        """A reference to a written parameter, for a graph that is saved beside the data file."""
        at = self.stored[name]
        return ir.ExternalTensor(
            location=self.path.name, offset=at.offset, length=at.length, dtype=at.dtype, shape=ir.Shape(at.shape),
            name=name, base_dir=self.path.parent,
        )  # fmt: skip


def weights_of(module: nn.Module) -> dict[str, Weight]:
    """Every parameter of the module under its dotted name."""
    found: dict[str, Weight] = {}
    for name, parameter in module.named_parameters():
        assert isinstance(parameter, Weight), f"{name} has no recipe"
        found[name] = parameter
    return found


def read_otherwise(
    module: nn.Module, change: Change, shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
) -> None:
    """Let a module's parameters be made from tensors that are changed on reading.

    change : from a tensor's name and values to the recipes' form. shapes : of tensors whose shape in the checkpoint
    differs from the recipes'.
    """

    def changed(recipe: Recipe | JointRecipe) -> Recipe | JointRecipe:
        sources = {name: shapes.get(name, shape) for name, shape in recipe.sources.items()}
        if isinstance(recipe, Recipe):
            return Recipe(sources, lambda load: recipe.chunks(lambda name: change(name, load(name))))
        return JointRecipe(sources, lambda load: recipe.chunks(lambda name: change(name, load(name))))

    weights = weights_of(module).values()
    recipes = {weight.recipe: changed(weight.recipe) for weight in weights}  # a shared recipe stays shared
    for weight in weights:
        weight.recipe = recipes[weight.recipe]
