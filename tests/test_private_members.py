"""Tests and tools go in by the doors that the product has: what a class keeps to itself is looked at by nobody else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("export", "models", "runtime", "server")

# (file, private member): why it is entered all the same.
_LIBRARY = "not the product's: the library has no other way to it"
EXCEPTIONS = {
    ("tests/runtime/test_buffers.py", "_value"): "a GPU's buffer, made and read where there is no GPU",
    ("tests/runtime/test_buffers.py", "_memory"): "the same",
    ("tests/runtime/test_buffers.py", "_array"): "the same",
    ("tests/command/test_remote.py", "_tunnel_headers"): _LIBRARY,
    ("tests/ray/conftest.py", "_exit"): "os._exit: dies as a process does that is killed",
    ("tests/ray/test_joint_pages_on_ray.py", "_exit"): "the same",
    ("tests/runtime/test_machine.py", "_replace"): "of a named tuple, whose documented methods begin like this",
    ("tests/writers/test_pages_as_documents.py", "_tc"): _LIBRARY,
    ("tools/dots_reference.py", "_from_config"): _LIBRARY,
    ("tools/train_tiny/model.py", "_from_config"): _LIBRARY,
    ("tools/train_tiny/train.py", "_is_avx512_bf16_supported"): _LIBRARY,
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def is_own(value: ast.expr) -> bool:
    """``self``, ``cls`` and ``super()``."""
    if isinstance(value, ast.Call):
        value = value.func
    return isinstance(value, ast.Name) and value.id in ("self", "cls", "super")


def entered(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines and private members of others: as attributes, imported from the product, or named to ``monkeypatch``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not is_own(node.value):
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PRODUCT:
            yield from ((node.lineno, one.name) for one in node.names if is_private(one.name))
        elif isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name)):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if called in ("setattr", "delattr", "getattr"):
                for name in node.args[:2]:
                    if isinstance(name, ast.Constant) and isinstance(name.value, str):
                        yield from ((node.lineno, part) for part in name.value.split(".") if is_private(part))


def found_in(*rooms: str) -> Iterator[tuple[str, int, str]]:
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            for line, name in entered(ast.parse(path.read_text("utf-8"))):
                yield path.relative_to(ROOT).as_posix(), line, name


def test_tests_and_tools_enter_no_private_member() -> None:
    entered = list(found_in("tests", "tools"))
    assert [f"{file}:{line}: {name}" for file, line, name in entered if (file, name) not in EXCEPTIONS] == []
    assert {(file, name) for file, _, name in entered} == EXCEPTIONS.keys(), "an exception that is none any more"


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("model._engine.submit(x)", ["_engine"]),
        ("make()._state", ["_state"]),
        ("from runtime.model import Model, _blocks_on", ["_blocks_on"]),
        ("monkeypatch.setattr(doctor, '_nvidia', f)", ["_nvidia"]),
        ("monkeypatch.setattr('server.fetch._Connection.open', f)", ["_Connection"]),
        ("self._own + super()._own + model.engine + model.__dict__", []),
        ("from tests.reading import _own", []),
    ],
)
def test_every_way_in_is_noticed(code: str, names: list[str]) -> None:
    assert [name for _, name in entered(ast.parse(code))] == names
