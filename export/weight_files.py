"""Finds the files with the weights in a folder, in transformers' order: a single file, then an index's shards.

Folders may hold leftovers: ``save_pretrained`` leaves older shards and their index beside a new ``model.safetensors``,
and vice versa; people rename shards; an adapter may be beside its model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from .export_errors import ExportError
from .json_files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Weights in formats that run code on reading, or that are obsolete.
_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack")


class MissingWeights(ExportError):
    """Weights are missing; a download may bring them."""


def weight_files(place: Path, note: Callable[[str], None]) -> list[Path]:
    """The safetensors files to read.

    Parameters
    ----------
    place
        the checkpoint's folder, or the path of ``--weights``: a file, an index, or a folder.
    note
        called with choices that the user should know.

    Raises
    ------
    ExportError
        when there are no weights, or a file is missing.
    """
    place = place.expanduser()
    if place.is_file():
        return _of_index(place, note) if place.name.endswith(".index.json") else [place]
    single, index = place / SINGLE, place / INDEX
    if single.is_file():
        if index.is_file():
            _note_other(single, _whole_shards(index), note)
        return [single]
    if index.is_file():
        return _of_index(index, note)
    files = _all_files(place)
    if not files:
        raise MissingWeights(_no_weights(place))
    return files


def tensor_names(file: Path) -> set[str]:
    """Names in a safetensors file's header; none for an incomplete file."""
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        return set(header) - {"__metadata__"}
    except (OSError, ValueError, OverflowError, MemoryError):
        return set()


def _of_index(index: Path, note: Callable[[str], None]) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ExportError(f"{index} has no weight_map; download it again")
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if not missing:
        return files
    # A shard was renamed: the files that are there may still hold every tensor.
    renamed = _all_files(index.parent)
    names = [tensor_names(file) for file in renamed]
    if weight_map.keys() <= set().union(*names) and sum(map(len, names)) == len(set().union(*names)):
        found = ", ".join(file.name for file in renamed)
        note(f"{index} names {', '.join(missing)}, which is not there; {found} holds every tensor and is read instead")
        return renamed
    raise MissingWeights(f"{index.parent} lacks {', '.join(missing)}, which its index names; finish the download")


def _whole_shards(index: Path) -> list[Path]:
    """The shards that an index names, when all of them are there; else none."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [index.parent / name for name in sorted(set(weight_map.values()))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []  # an index that is not used may be damaged
    return files if all(file.is_file() and file.name != SINGLE for file in files) else []


def _note_other(taken: Path, others: Sequence[Path], note: Callable[[str], None]) -> None:
    """Note that a whole set of shards is beside the file that is taken, and which of the two is older."""
    if not others:
        return
    newest = max(file.stat().st_mtime for file in others)
    age = "older" if newest < taken.stat().st_mtime else "newer"
    line = f"{taken.parent} holds two models: {taken.name} is taken, as transformers does; "
    line += f"{', '.join(file.name for file in others)} (named by {INDEX}) is {age} and is not read"
    note(line if age == "older" else f"warning: {line}. If you want the newer one, remove {taken.name}")


def _all_files(folder: Path) -> list[Path]:
    """Every safetensors file that may be a model's, without an adapter's."""
    return sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter_"))


def _no_weights(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG).is_file() or (folder / ADAPTER_WEIGHTS).is_file():
        base = read_json(folder / ADAPTER_CONFIG) if (folder / ADAPTER_CONFIG).is_file() else {}
        model = base.get("base_model_name_or_path") or "BASE_MODEL"
        return (
            f"{folder} holds an adapter (LoRA) and not the model that it was trained on; name both: "
            f"--source {model} --adapter {folder}"
        )
    others = sorted(file.name for pattern in _OTHER_FORMATS for file in folder.glob(pattern))
    if others:
        return (
            f"{folder} holds no *.safetensors file but {others[0]}, a format that is not read; save the model again "
            "with save_pretrained, whose files are safetensors"
        )
    return f"{folder} holds no *.safetensors file; give a directory in the hub's layout, or a hub id"
