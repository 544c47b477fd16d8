"""Reads the headers of safetensors files, and no tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .export_errors import ExportError


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's file, name, type and shape, from the file's header."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' spelling: BF16, F16, F32, ...
    stored_name: str  # in the file


def read_headers(files: Iterable[Path]) -> dict[str, TensorInfo]:
    """Every tensor of the files by its name.

    Raises
    ------
    ExportError
        for a damaged file, and for a tensor in two files.
    """
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        try:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118 - a safe_open handle is no dict
                    if name in tensors:
                        raise ExportError(f"{name} stands in both {tensors[name].file} and {file}; remove one of them")
                    part = opened.get_slice(name)
                    tensors[name] = TensorInfo(file, tuple(part.get_shape()), part.get_dtype(), name)
        except (SafetensorError, OSError) as error:
            raise ExportError(f"{file} is no complete safetensors file ({error}); download it again") from error
    return tensors
