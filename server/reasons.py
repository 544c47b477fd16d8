"""Removes this server's paths from reasons that clients are told.

Messages of the exporter and the runtime name files with their folders, for the operator (in the log) and not for
strangers.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from models.paths import cache_dir, config_path

# An absolute path of POSIX or Windows, or one below the home; not the path of an address (https://host/path).
_PATH = re.compile(r"""(?<![\w:/\\.~-])(?:~?/(?![/\s])|[A-Za-z]:[\\/]|\\\\)[^\s'",;:()\[\]<>|]*""")


def without_paths(text: str) -> str:
    """The text with each path of this machine reduced to its last name."""
    for folder in sorted(_folders(), key=len, reverse=True):
        # First whole known folders, whose names may have spaces, at which the pattern stops.
        text = re.sub(re.escape(folder) + r"(?![\w.-])", "/-", text)
    return _PATH.sub(lambda found: re.split(r"[\\/]", found[0].rstrip("\\/."))[-1] or "the folder", text)


def _folders() -> list[str]:
    places = (cache_dir(), config_path().parent, Path.home(), Path.cwd(), Path(sys.prefix))
    return [str(place) for place in places if len(place.parts) > 1]
