"""A checkpoint folder with lazily read tensors: names and shapes from headers, one tensor at a time in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors' NumPy side needs
import numpy as np
from safetensors import SafetensorError, safe_open

from . import names
from .adapter import Adapter
from .export_errors import ExportError
from .headers import read_headers
from .json_files import read_json
from .quantised import refuse_quantised
from .weight_files import ADAPTER_WEIGHTS, weight_files

_FLOAT_TYPES = {"BF16", "F16", "F32", "F64"}
_SHOWN = 20  # most tensors to list in an error


class Checkpoint:
    """The weights of one model, single or sharded safetensors, under the names that their publisher gave them.

    Only headers are read on opening. ``config_file`` and ``weights`` replace the folder's own files when given (a
    fine-tune's weights with the original configuration, say). Known spellings of names by training programs are
    understood, see ``export.names``. ``adapter``: the folder of a LoRA adapter to merge into loaded tensors.
    """

    def __init__(
        self, folder: Path, *, config_file: Path | None = None, weights: Path | None = None,
        adapter: Path | None = None, note: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        """Open; ``note`` is called with choices that the user should know.

        Raises
        ------
        ExportError
            for a missing or damaged file, or weights that are quantised already.
        """
        self.folder, self.place = folder, weights or folder
        self._config_file = config_file or folder / "config.json"
        config = read_json(self._config_file)
        files = weight_files(self.place, note)
        self.tensors = names.unwrapped(read_headers(files))
        self.files = [self._config_file, *files]
        self._merges: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {}
        if adapter is not None:
            self._attach(Adapter(adapter))
        elif weights is None and (beside := folder / ADAPTER_WEIGHTS).is_file():
            raise ExportError(
                f"{beside} is an adapter (LoRA) beside the model; --adapter {folder} merges it, and "
                f"--weights {files[0] if len(files) == 1 else folder} leaves it out"
            )
        types = {name: info.dtype for name, info in self.tensors.items()}
        if refuse_quantised(config, types, str(self.place)):
            note(f"{self._config_file} asks for rounding at load; the weights are exported as they are")
        self.config: Mapping[str, Any] = self._with_rows(config, note)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name, in any known spelling."""
        return self._spelt(name) in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header.

        Raises
        ------
        ExportError
            when the checkpoint has no tensor of that name.
        """
        if not self.has(name):
            raise ExportError(f"{self.place} has no tensor {name}; is this a checkpoint of another model family?")
        return self.tensors[self._spelt(name)].shape

    def load(self, name: str) -> np.ndarray:
        """Read one tensor in its stored type (bfloat16 through ml_dtypes)."""
        spelt = self._spelt(name)
        info = self.tensors[spelt]
        try:
            with safe_open(info.file, framework="np") as tensors:
                array: np.ndarray = tensors.get_tensor(info.stored_name)
        except (SafetensorError, OSError) as error:
            raise ExportError(f"cannot read {name} from {info.file}: {error}; download the file again") from error
        merge = self._merges.get(spelt)
        return array if merge is None else merge(array)

    def _spelt(self, name: str) -> str:
        """The name of a tensor in the files; the given name where there is no such tensor."""
        return next((one for one in (name, *names.spellings(name)) if one in self.tensors), name)

    def _attach(self, adapter: Adapter) -> None:
        """Merge an adapter into tensors loaded from now on."""
        self._merges = adapter.attach(self.tensors)
        place = names.finder(self.tensors)
        for info in read_headers([adapter.file]).values():
            name = adapter.replaced.get(info.stored_name)
            if name is not None:
                self.tensors[place(name) or name] = info
        self.files += adapter.files

    def _with_rows(self, config: Mapping[str, Any], note: Callable[[str], None]) -> Mapping[str, Any]:
        """The config with the embedding's vocabulary: resizing an embedding leaves the old number in the config."""
        tables = {info.shape[0] for name, info in self.tensors.items() if name.endswith("embed_tokens.weight")}
        if len(tables) != 1:
            return config
        (rows,) = tables
        changed = _replaced(config, "vocab_size", rows)
        if changed != config:
            note(f"{self._config_file} gives another vocab_size than the embedding has rows; {rows} is taken")
        return changed

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
        shapes = {self._spelt(name): shape for name, shape in expected.items()}
        missing = [
            f"missing: {name}, expected {list(shape)}" for name, shape in shapes.items() if name not in self.tensors
        ]
        problems: list[str] = []
        prefixes = tuple(spelt for prefix in unused for spelt in (prefix, *names.spellings(prefix)))
        for name, info in self.tensors.items():
            where = f"in {info.file.name}"
            if name not in shapes:
                if not name.startswith(prefixes) and not names.is_buffer(name):
                    problems.append(f"unexpected: {name} {list(info.shape)} {where}")
            elif info.shape != shapes[name]:
                problems.append(f"wrong shape: {name} is {list(info.shape)} {where}, expected {list(shapes[name])}")
            elif info.dtype not in _FLOAT_TYPES:
                problems.append(f"wrong type: {name} is {info.dtype} {where}, expected one of {sorted(_FLOAT_TYPES)}")
        if missing or problems:
            # A long list shows both kinds: a wrong path shows in missing beside unexpected names.
            others = problems[: max(_SHOWN // 2, _SHOWN - len(missing))]
            shown = missing[: _SHOWN - len(others)] + others
            left = len(missing) + len(problems) - len(shown)
            shown += [f"... and {left} more"] if left else []
            raise ExportError(
                f"the tensors in {self.place} do not fit the model that {self._config_file} describes:\n  "
                + "\n  ".join(shown)
            )


def _replaced(config: Mapping[str, Any], key: str, value: int) -> dict[str, Any]:
    """The config with another number under that key, in the config of any part too."""

    def new(name: str, old: Any) -> Any:
        if isinstance(old, dict):
            return _replaced(old, key, value)
        return value if name == key and type(old) is int and old > 0 else old

    return {name: new(name, old) for name, old in config.items()}
