"""A checkpoint folder as lazily read tensors: what is there, of which shape, and one tensor at a time in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors' NumPy side needs
import numpy as np
from safetensors import SafetensorError, safe_open

from .errors import ExportError

_FLOAT_TYPES = {"BF16", "F16", "F32", "F64"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor stands and what it looks like, from the file's header."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' spelling: BF16, F16, F32, ...


class Checkpoint:
    """The weights of one model, single or sharded safetensors.

    Only headers are read on opening. ``config_file`` and ``weights`` replace the folder's own files when given (a
    fine-tune's weights with the original configuration, say).
    """

    def __init__(self, folder: Path, *, config_file: Path | None = None, weights: Path | None = None) -> None:
        self.folder = folder
        self._config_file = config_file or folder / "config.json"
        self.config: Mapping[str, Any] = read_json(self._config_file)
        weight_files = _weight_files(folder, weights)
        self.tensors = _read_headers(weight_files)
        self.files = [self._config_file, *weight_files]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header.

        Raises
        ------
        ExportError
            when the checkpoint has no tensor of that name.
        """
        if name not in self.tensors:
            raise ExportError(f"{self.folder} has no tensor {name}; is this a checkpoint of another model family?")
        return self.tensors[name].shape

    def load(self, name: str) -> np.ndarray:
        """Read one tensor in its stored type (bfloat16 through ml_dtypes)."""
        info = self.tensors[name]
        try:
            with safe_open(info.file, framework="np") as tensors:
                array: np.ndarray = tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ExportError(f"cannot read {name} from {info.file}: {error}; download the file again") from error
        return array

    @property
    def parameter_count(self) -> int:
        return sum(int(np.prod(info.shape)) for info in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Size of its files."""
        return sum(file.stat().st_size for file in self.files)

    def check(self, expected: Mapping[str, tuple[int, ...]], unused: Iterable[str] = ()) -> None:
        """Compare the headers with what the graphs need, before any work is done.

        Parameters
        ----------
        expected
            tensor names with their shapes.
        unused
            prefixes of names that may be present and are not needed.

        Raises
        ------
        ExportError
            listing every missing, unexpected, wrongly shaped or non-float tensor with both shapes and the file.
        """
        problems = [
            f"missing: {name}, expected {list(shape)}" for name, shape in expected.items() if name not in self.tensors
        ]
        for name, info in self.tensors.items():
            where = f"in {info.file.name}"
            if name not in expected:
                if not name.startswith(tuple(unused)):
                    problems.append(f"unexpected: {name} {list(info.shape)} {where}")
            elif info.shape != expected[name]:
                problems.append(f"wrong shape: {name} is {list(info.shape)} {where}, expected {list(expected[name])}")
            elif info.dtype not in _FLOAT_TYPES:
                problems.append(f"wrong type: {name} is {info.dtype} {where}, expected one of {sorted(_FLOAT_TYPES)}")
        if problems:
            shown = problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
            raise ExportError(
                f"the tensors in {self.folder} do not fit the model that {self._config_file} describes:\n  "
                + "\n  ".join(shown)
            )


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Raises
    ------
    ExportError
        when the file is missing, is no JSON, or holds something other than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing; a checkpoint folder needs it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ExportError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ExportError(f"{path} holds {type(value).__name__}, expected a JSON object")
    return value


def _weight_files(folder: Path, weights: Path | None) -> list[Path]:
    """The safetensors files: the named ones, those of the index, or all in the folder."""
    if weights is not None and weights.is_file():
        return [weights]
    folder = weights or folder
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        shards = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        if not shards or not all(isinstance(name, str) for name in shards):
            raise ExportError(f"{index} has no weight_map; download it again")
        files = [folder / name for name in sorted(shards)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ExportError(f"{folder} lacks {', '.join(missing)}, which its index names; finish the download")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ExportError(f"{folder} holds no *.safetensors file; give a directory in the hub's layout, or a hub id")
    return files


def _read_headers(files: Iterable[Path]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        try:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118 - a safe_open handle is no dict
                    if name in tensors:
                        raise ExportError(f"{name} stands in both {tensors[name].file} and {file}; remove one of them")
                    part = opened.get_slice(name)
                    tensors[name] = TensorInfo(file, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise ExportError(f"{file} is no complete safetensors file ({error}); download it again") from error
    return tensors
