"""Where results go and in which formats, by ``-o``, ``--format`` and ``--pdf-a`` together."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.nearest import did_you_mean

from ..writers import FORMATS, INSTALL
from . import buckets
from .command_errors import UsageError

# Formats by the ending of -o FILE; --pdf-a chooses between the two kinds of PDF.
ENDINGS = {f".{form.ending.rpartition('.')[2]}": name for name, form in FORMATS.items() if name != "pdf-a"}
_LIKE_A_FORMAT = re.compile(r"[a-z][a-z0-9]{1,4}")  # an ending of a file, and hardly of a folder


@dataclass(frozen=True)
class Target:
    """Where results go: a folder, or one file in a folder; None for standard output."""

    folder: Path | str | None  # text: an address in a bucket
    formats: list[str]
    single: str | None = None


def target_of(given: Mapping[str, Any], default: str) -> Target:
    """The flags' target; ``default`` is the format where the flags name none.

    Raises
    ------
    UsageError
        when the flags contradict each other, or a format's packages are missing.
    """
    target = _archived(_given_target(given, default), given["pdf_a"])
    _check_installed(target.formats)
    return target


def _given_target(given: Mapping[str, Any], default: str) -> Target:
    out, formats = given["output"], given["format"]
    if out is None:
        if formats is not None and len(formats) > 1:
            raise UsageError("standard output takes one --format; name a folder for several with -o")
        formats = formats or [default]
        if FORMATS[formats[0]].binary and sys.stdout.isatty():
            raise UsageError(f"{formats[0]} is no text for a terminal; name a file with -o, or send it on with >")
        return Target(None, formats)
    out = str(buckets.local_path(out) or out)
    if buckets.is_url(out):
        above, _, name = out.rpartition("/")
        ending = f".{name.rpartition('.')[2].lower()}" if "." in name else ""
        if ending not in ENDINGS:
            return Target(out.rstrip("/"), formats or [default])
        if formats not in (None, [ENDINGS[ending]]):
            raise UsageError(f"-o {out} asks for {ENDINGS[ending]} and --format for others; leave one out")
        return Target(above, [ENDINGS[ending]], name)
    meant_as_folder = out.endswith(("/", os.sep))
    out = Path(os.path.abspath(Path(out).expanduser()))
    suffix = out.suffix.lower()
    if suffix in ENDINGS and not out.is_dir():
        form = ENDINGS[suffix]
        if formats == ["pdf-a"] and form == "pdf":
            form = "pdf-a"
        if formats not in (None, [form]):
            raise UsageError(f"-o {out.name} asks for {form} and --format for {','.join(formats)}; leave one out")
        return Target(out.parent, [form], out.name)
    if out.exists() and not out.is_dir():
        raise UsageError(f"-o {out} is a file; name a folder, or a file that ends in {one_of(ENDINGS)}")
    if _LIKE_A_FORMAT.fullmatch(suffix[1:]) and not out.exists() and not meant_as_folder:
        raise UsageError(
            f"-o {out.name} ends in {suffix}, which is no format; there are {', '.join(ENDINGS)}"
            f"{did_you_mean(suffix, ENDINGS)} (a folder of that name: -o {out.name}/)"
        )
    return Target(out, formats or [default])


def _archived(target: Target, archive: bool) -> Target:
    """The formats with PDF/A in place of PDF. Raises UsageError for --pdf-a without a PDF."""
    if archive and not {"pdf", "pdf-a"} & set(target.formats):
        raise UsageError("--pdf-a is a kind of PDF; add --format pdf, or a file that ends in .pdf with -o")
    formats = list(dict.fromkeys("pdf-a" if archive and form == "pdf" else form for form in target.formats))
    if {"pdf", "pdf-a"} <= set(formats):
        raise UsageError("pdf and pdf-a would be one file; leave one out of --format")
    return replace(target, formats=formats)


def _check_installed(formats: Iterable[str]) -> None:
    """Raises UsageError where a format's packages are missing."""
    for form in formats:
        if missing := FORMATS[form].missing():
            raise UsageError(f"--format {form} needs {', '.join(missing)}, which is not installed; run: {INSTALL}")


def format_list(text: str) -> list[str]:
    """The value of ``--format``. Raises argparse.ArgumentTypeError."""
    formats = list(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    unknown = [form for form in formats if form not in FORMATS]
    if unknown:
        near = did_you_mean(unknown[0], FORMATS)
        raise argparse.ArgumentTypeError(f"expected {', '.join(FORMATS)}, found {unknown[0]!r}{near}")
    return formats


def one_of(words: Iterable[str]) -> str:
    """Words as a list in a sentence."""
    *others, last = words
    return f"{', '.join(others)} or {last}"
