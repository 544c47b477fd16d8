"""The size of a checkpoint on this machine, from the headers of its files; the default dtype depends on the size."""

from __future__ import annotations

import json
import math
from pathlib import Path

_LONGEST_HEADER = 100 << 20  # bytes: the safetensors library's limit


def parameter_count(source: str, weights: Path | None = None) -> int | None:
    """Parameters of a checkpoint folder, or of the safetensors that ``weights`` (a file or a folder) names instead.

    None where unknown: the source is a hub id, has no weights yet, or has an invalid safetensors file (which the
    exporter will explain).
    """
    place = (weights or Path(source)).expanduser()
    # As in the exporter, a single file wins over shards beside it, and an adapter is no part of the model.
    single = next((one for one in (place, place / "model.safetensors") if one.is_file()), None)
    others = (one for one in sorted(place.glob("*.safetensors")) if not one.name.startswith("adapter_"))
    files = [single] if single else list(others)
    if not files:
        return None
    try:
        return sum(_parameters(file) for file in files)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def _parameters(file: Path) -> int:
    """A safetensors file begins with 8 bytes, the length of the header, and the header, a JSON object of tensors."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError(f"{file} is no safetensors file")
        header = json.loads(opened.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
