"""From INPUT... (files, folders, patterns, standard input) to a list of documents with distinct names.

Names decide where results go, so no two documents get the same, whatever their folders and endings.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from ..writers import FORMATS
from . import buckets
from .command_errors import UsageError
from .source import STANDARD_INPUT, SUFFIXES, DocumentSource

_LONGEST_NAME = 200  # bytes; file systems take 255, endings such as -p1000-10.jpg included


def find_sources(
    inputs: Sequence[str], out: Path | str | None, read_stdin: Callable[[], bytes], *, follow: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> list[DocumentSource]:  # fmt: skip
    """All documents that the inputs name, in the inputs' order, each once.

    out : the output folder, a path or an address; left out where it lies below an input.
    follow : follow links to folders, each folder once. tell : called with a line about each input left out.

    Raises
    ------
    UsageError
        for an input that is missing or holds no document.
    """
    sources: dict[str, DocumentSource] = {}
    for text in inputs:
        found = list(_found(text, out, read_stdin, _Walk(out if isinstance(out, Path) else None, follow, tell)))
        if not found:
            raise UsageError(f"{text}: no document here; documents end in {', '.join(SUFFIXES)}")
        for source in found:
            sources.setdefault(source.name, source)
    return list(sources.values())


def _found(text: str, out: Path | str | None, read_stdin: Callable[[], bytes], walk: _Walk) -> Iterator[DocumentSource]:
    if (local := buckets.local_path(text)) is not None:
        text = str(local)
    if buckets.is_url(text):
        return buckets.find(text, out if isinstance(out, str) else None)
    return _expand(text, out if isinstance(out, Path) else None, read_stdin, walk)


def _expand(text: str, out: Path | None, read_stdin: Callable[[], bytes], walk: _Walk) -> Iterator[DocumentSource]:
    if text == STANDARD_INPUT:
        yield DocumentSource(None, PurePath("stdin"), read_stdin())
        return
    path = Path(text).expanduser()
    if path.is_dir():
        root = _absolute(path)
        if out is not None and out == root:
            raise UsageError(f"-o {out} is the input folder itself; name another one, which may lie inside it")
        yield from walk.sources(root, root)
    elif path.exists():
        yield DocumentSource(_absolute(path), PurePath(path.name), None if path.is_file() else path.read_bytes())
    elif glob.has_magic(text):
        yield from _matching(str(path), out, text, walk)
    else:
        raise UsageError(f"{text}: there is no such file or folder")


def _matching(pattern: str, out: Path | None, text: str, walk: _Walk) -> Iterator[DocumentSource]:
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root = _absolute(Path(*parts[:fixed]) if fixed else Path())
    matches = [_absolute(Path(match)) for match in glob.glob(pattern, recursive=True)]
    results = out if out is not None and out != root and out.is_relative_to(root) else None
    for match in sorted(matches, key=_natural):
        if results is not None and match.is_relative_to(results):
            continue
        if match.is_dir():
            yield from walk.sources(match, root)
        elif not walk.leaves(match):
            yield DocumentSource(match, match.relative_to(root))
    if not matches:
        raise UsageError(f"{text}: nothing matches this pattern")


@dataclass
class _Walk:
    """Walks folders, each once: without hidden files and folders, and page2 before page10."""

    out: Path | None
    follow: bool
    tell: Callable[[str], None]
    _been: set[tuple[int, int]] = field(default_factory=set)  # device and inode of each folder

    def sources(self, folder: Path, root: Path) -> Iterator[DocumentSource]:
        """The documents under a folder. root : names are relative to this folder."""
        problems: list[OSError] = []
        list(self._new(folder.parent, [folder.name]))  # a link back here is not another folder
        for here, folders, files in os.walk(folder, onerror=problems.append, followlinks=self.follow):
            folders[:] = sorted(self._new(Path(here), folders), key=_natural)
            for name in sorted(files, key=_natural):
                path = Path(here) / name
                if not name.startswith(".") and path.suffix.lower() in SUFFIXES and not self.leaves(path):
                    yield DocumentSource(path, path.relative_to(root))
        for problem in problems:
            path = Path(str(problem.filename))
            reason = os.strerror(problem.errno or 0)
            yield DocumentSource(path, path.relative_to(root), problem=f"{path} cannot be looked into: {reason}")

    def leaves(self, path: Path) -> bool:
        """Whether to leave out a path that is no file (a pipe would be waited on for ever), and say so."""
        if path.is_file() or not path.exists():
            return False
        kind = next((kind for kind, test in _KINDS.items() if test(path)), "no file")
        self.tell(f"left: {path} is {kind}; name it itself to read it")
        return True

    def _new(self, here: Path, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            path = here / name
            if name.startswith(".") or path == self.out:
                continue
            if self.follow:
                try:
                    status = path.stat()
                except OSError:
                    yield name  # reported when its folder is read
                    continue
                if (status.st_dev, status.st_ino) in self._been:
                    continue
                self._been.add((status.st_dev, status.st_ino))
            yield name


_KINDS: Mapping[str, Callable[[Path], bool]] = {
    "a pipe": Path.is_fifo, "a socket": Path.is_socket, "a device": Path.is_char_device, "a disk": Path.is_block_device,
}  # fmt: skip


def _absolute(path: Path) -> Path:
    """The absolute path without ``..``. Links are kept: a link to a page has a name of its own."""
    return Path(os.path.abspath(path))


def _natural(path: str | Path) -> list[tuple[int, str]]:
    """Sort key that takes numbers as numbers."""
    return [
        (int(digits or 0), text.lower()) for digits, text in re.findall(r"([0-9]{1,18})|([^0-9]+|[0-9]+)", str(path))
    ]


def output_names(sources: Sequence[DocumentSource], known: Mapping[str, str]) -> list[str]:
    """For each source the path of its results below the output folder, with ``/`` and without ending.

    ``report.pdf`` gives ``report``; where several would, ``report.pdf`` (and ``report.png``); where even those clash,
    the folders that tell them apart come in front. A result in the place of another document's folder (``r`` gives
    r.md, and there is r.md/x.png) counts as a clash, too.

    known : document -> its name in an earlier run, which is kept.
    """
    chosen: list[str | None] = [known.get(source.name) for source in sources]
    taken = {name.lower() for name in known.values()}
    shared = _common_folder(sources)
    naming: tuple[Callable[[DocumentSource], PurePath], ...] = (
        lambda source: source.relative.with_suffix(""),
        lambda source: source.relative,
        lambda source: source.relative if source.path is None else source.path.relative_to(shared),
    )
    for name_of in naming:
        candidates = [
            _posix(name_of(source)) if name is None else None for source, name in zip(sources, chosen, strict=True)
        ]
        # Many file systems ignore case.
        counts = Counter(candidate.lower() for candidate in candidates if candidate is not None)
        folders, results = _folders([*counts, *taken]), _results(taken)
        fitting = {
            index: candidate
            for index, candidate in enumerate(candidates)
            if candidate is not None
            and counts[candidate.lower()] == 1
            and candidate.lower() not in taken
            and folders.isdisjoint(_results([candidate]))
            and results.isdisjoint(_folders([candidate]))
        }
        for index, candidate in fitting.items():
            chosen[index] = candidate
        taken |= {candidate.lower() for candidate in fitting.values()}
    results = _results(taken)
    for index, source in enumerate(sources):
        if chosen[index] is None:  # names that differ in case only, or that an earlier run gave to another document
            name = f"{_posix(source.relative)}-{_digest(source.name)}"
            chosen[index] = name if results.isdisjoint(_folders([name])) else name.rpartition("/")[2]
    return [name for name in chosen if name is not None]


def _results(names: Iterable[str]) -> set[str]:
    """The result files of names, in lower case."""
    return {f"{name.lower()}.{form.ending}" for name in names for form in FORMATS.values()}


def _folders(names: Iterable[str]) -> set[str]:
    """All folders in which names lie, in lower case."""
    return {folder for name in names for folder in _above(name.lower())}


def _above(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _common_folder(sources: Sequence[DocumentSource]) -> Path:
    folders = [str(source.path.parent) for source in sources if source.path is not None]
    try:
        return Path(os.path.commonpath(folders)) if folders else Path()
    except ValueError:  # on different drives of Windows
        return Path()


def _posix(path: PurePath) -> str:
    return "/".join(_shortened(part.replace(":", "").strip("\\/") or "root") for part in path.parts)


def _shortened(name: str) -> str:
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return name
    return f"{encoded[:_LONGEST_NAME].decode('utf-8', 'ignore')}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
