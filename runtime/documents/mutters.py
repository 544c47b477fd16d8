"""Turns what C libraries write to standard error while a page is drawn into one warning.

libtiff, for one, writes a line for every unknown tag. Used by worker processes only.
"""

from __future__ import annotations

import os
import re
import warnings

_MOST_LETTERS = 200
_MODULE = re.compile(r"^[\w. ]+: (?:Warning, |Error, )?(?=\w)")  # "TIFFReadDirectory: Warning, Unknown field ..."


class Mutters:
    """Replaces the process's standard output and standard error."""

    def __init__(self) -> None:
        self._read_end, write_end = os.pipe()
        if hasattr(os, "set_blocking"):  # not on Windows before Python 3.12
            for end in (self._read_end, write_end):
                os.set_blocking(end, False)  # a full pipe drops a library's lines and never blocks the library
            os.dup2(write_end, 2)
        os.dup2(2, 1)  # libraries that print must not write into the answers
        os.close(write_end)
        self._record = warnings.catch_warnings(record=True, action="always")  # for as long as the process lives
        recorded = self._record.__enter__()
        assert recorded is not None  # as it was asked to record
        self._warned = recorded
        for about_programs in (ResourceWarning, DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", about_programs)

    def taken(self) -> tuple[str, ...]:
        """One line for all that was written since the last call; empty for nothing."""
        lines = [str(warned.message) for warned in self._warned]
        self._warned.clear()
        lines += self._available().decode("utf-8", "replace").splitlines()
        said = list(dict.fromkeys(filter(None, (_MODULE.sub("", line.strip()) for line in lines))))
        if not said:
            return ()
        more = f" (and {len(said) - 1} more such line{'s' * (len(said) > 2)})" if len(said) > 1 else ""
        return (f"the library that decodes it says: {said[0][:_MOST_LETTERS].rstrip(' .')}{more}",)

    def _available(self) -> bytes:
        try:
            return os.read(self._read_end, 1 << 20) if hasattr(os, "set_blocking") else b""
        except BlockingIOError:
            return b""
