"""How requests fail: the error goes to the log and, with a remedy where one is known, to the requests' callers."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from .gpu import is_out_of_memory
from .sequence import Sequence

logger = logging.getLogger(__name__)


def fail(sequences: Iterable[Sequence], error: Exception) -> None:
    """End the sequences that have not ended yet with an error."""
    failed = [sequence for sequence in sequences if not sequence.finished]
    if failed:  # else the run was stopped because its request had ended
        # The message names no user data: exceptions here come from ONNX Runtime and NumPy, which know shapes only.
        logger.error("a request failed in the engine", exc_info=error)
    for sequence in failed:
        sequence.finish("error", explained(error))


def explained(error: Exception) -> str:
    """An error of one request, with the remedy where a GPU has no memory left."""
    text = f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        return f"the GPU has no memory left for this request; set fewer --slots, or take --dtype q4 ({text})"
    return text
