"""What NVIDIA's runtime library says of a card, since ONNX Runtime's Python API does not."""

from __future__ import annotations

import ctypes
import re

_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "cudart64_13.dll", "cudart64_12.dll")
_OUT_OF_MEMORY = re.compile("out of memory|failed to allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)


def free_memory(index: int) -> int | None:
    """Free bytes of a card; None where the library is missing or fails."""
    library = _library()
    if library is None:
        return None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if library.cudaSetDevice(index) or library.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)):
        return None
    return free.value


def card_count() -> int:
    """Number of cards that this process may use."""
    library, count = _library(), ctypes.c_int()
    if library is None or library.cudaGetDeviceCount(ctypes.byref(count)):
        return 1  # the version that ONNX Runtime loads
    return max(1, count.value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ONNX Runtime's error says that a card's memory is full; such errors have no class of their own."""
    return bool(_OUT_OF_MEMORY.search(str(error)))


def _library() -> ctypes.CDLL | None:
    """Loaded already by ONNX Runtime, where CUDA is in use."""
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
