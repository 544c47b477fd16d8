"""ONNX Runtime's options that depend on the processor, for the runtime and the exporter's measurements."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path


def session_entries() -> Mapping[str, str]:
    """Entries of a CPU session's configuration without which 8-bit products are wrong on this processor."""
    return {} if adds_bytes_exactly() else {"session.x64quantprecision": "1"}


def adds_bytes_exactly() -> bool:
    """Whether 8-bit products keep their sums in 32 bits.

    x86 processors without VNNI (before Ice Lake and Zen 4) add two products in 16 bits, which overflow; ONNX Runtime
    must then be told to take the slower exact way. Only Linux has a file with the processor's flags.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
