"""Which module imports which, wherever in a file: rooms that must not know each other, and no way back."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("export", "models", "runtime", "server", "tools")


def files_of(package: str) -> Iterator[tuple[str, Path]]:
    """Full name and file of each module; a package has its own name."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """The project's modules that each of them imports: at the top, in functions, and for types."""
    files = dict(one for package in PACKAGES for one in files_of(package))
    return {module: set(imported(module, path, files)) - {module} for module, path in files.items()}


def imported(module: str, path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:  # a module of the package, or a name in it
                found = next((name for name in (f"{base}.{alias.name}", base) if name in files), None)
                if found is not None:
                    yield found


def reached(graph: Mapping[str, set[str]], room: str) -> set[str]:
    """All that the modules of a room import, directly or over others."""
    met: set[str] = set()
    new = {module for module in graph if module == room or module.startswith(f"{room}.")}
    while new:
        met |= new
        new = {other for module in new for other in graph[module]} - met
    return met


@pytest.mark.parametrize("room", ["server.command", "server.writers", "server.scores", "runtime", "models", "export"])
def test_nothing_but_the_http_server_imports_it(graph: dict[str, set[str]], room: str) -> None:
    met = reached(graph, room)
    assert room in met
    assert sorted(name for name in met if name.startswith("server.http")) == []


def test_modules_import_each_other_in_one_direction_only(graph: dict[str, set[str]]) -> None:
    """An import inside a function, or for types alone, is one too: whoever reads one file has to read the other."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
