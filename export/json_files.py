"""JSON files of a checkpoint, read with errors that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .export_errors import ExportError


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
