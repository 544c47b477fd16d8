"""Who may import whom (shared/design.md): a serving machine has none of the exporter's packages."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from PIL import Image

from models.catalog import CATALOG, family_spellings
from runtime import Model

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("export", "models", "runtime", "server")
CONVERTING = ("torch", "transformers", "optimum", "onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub")
HTTP = ("falcon", "waitress", "httpx", "httpx2", "requests", "urllib3", "http", "socket")

FORBIDDEN = {
    "models": {"runtime", "server", "export", "tools", "tests", "onnxruntime", *CONVERTING, *HTTP},
    "runtime": {"server", "export", "tools", "tests", *CONVERTING, *HTTP},
    "server": {"export", "tools", "tests", "onnxruntime", "numpy", *CONVERTING},
    "export": {"runtime", "server", "tools", "tests"},
}
FAMILY_MODULES = ("models.deepseek_ocr", "models.paddleocr_vl")
# The final check and the report run the graphs that were just made.
MAY_RUN_GRAPHS = {"export/activations.py", "export/check.py", "export/divergence.py"}

SERVE = """
import importlib, importlib.abc, json, pkgutil, sys

blocked = set(json.loads(sys.argv[1]))

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is not installed on a serving machine")

sys.meta_path.insert(0, Blocker())
for name in ("models", "runtime", "server"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

from runtime import Model

with Model.open(sys.argv[2], device="cpu") as model:
    text = model.read(sys.argv[3], max_new_tokens=8).text
assert not blocked & {name.partition(".")[0] for name in sys.modules}
print(json.dumps(text))
"""


def imports_of(package: str) -> Iterator[tuple[str, int, str]]:
    """File, line and top-level name of every absolute import in a package, wherever in the file it stands."""
    for path in sorted((ROOT / package).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in names:
                yield file, node.lineno, name.partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_along_the_arrows(package: str) -> None:
    wrong = [f"{file}:{line} imports {name}" for file, line, name in imports_of(package) if name in FORBIDDEN[package]]
    assert not wrong


def test_the_exporter_uses_onnx_runtime_only_to_check_its_graphs() -> None:
    files = {file for file, _, name in imports_of("export") if name == "onnxruntime"}
    assert files <= MAY_RUN_GRAPHS


def named(requirements: list[str]) -> set[str]:
    """The distributions that the lines name."""
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in requirements}  # type: ignore[index]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_imported_package_is_a_declared_dependency(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = project["dependencies"] + extras["cpu"] + (extras["export"] if package == "export" else [])
    names = named(declared)
    more = {  # rooms that an extra is for, which nothing imports without it
        "server/writers/": named(extras["formats"]),
        "export/layout/": named(extras["layout"]),
        "server/ray/": named(extras["ray"]),
        "server/scores/": named(extras["eval"]) | named(extras["formats"]) | {"olmocr"},
        "server/command/buckets.py": named(extras["addresses"]),
    }
    own = {*PACKAGES, *sys.stdlib_module_names}
    distributions = packages_distributions()
    undeclared = set()
    for file, line, name in imports_of(package):
        providers = {dist.lower().replace("_", "-") for dist in distributions.get(name, [name])}
        allowed = names.union(*(extra for room, extra in more.items() if file.startswith(room)))
        if name not in own and not providers & allowed:
            undeclared.add(f"{file}:{line} imports {name}")
    assert not undeclared


# A model by name is a default or an example there, and never something to branch on.
MAY_NAME_A_MODEL = {"runtime/library/options.py"}


def test_runtime_and_server_name_no_family() -> None:
    """What differs between families lives in models/<family> and the manifest, so that a new one is added there."""
    families = {entry.family for entry in CATALOG.values()} | set(family_spellings())
    named = []
    for package in ("runtime", "server"):
        for path in sorted((ROOT / package).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and node.value in families and file not in MAY_NAME_A_MODEL:
                    named.append(f"{file}:{node.lineno} has {node.value!r}")
                # models.registry, too, is how a family is met; its own modules are not.
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(FAMILY_MODULES):
                    named.append(f"{file}:{node.lineno} imports from {node.module}")
    assert not named


def test_a_page_is_read_without_the_exporters_packages(
    random_model_folder: Path, picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    page = tmp_path / "page.png"
    picture(400, 300).save(page)
    run = subprocess.run(
        [sys.executable, "-c", SERVE, json.dumps([*CONVERTING, "export"]), str(random_model_folder), str(page)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    with Model.open(random_model_folder, device="cpu") as model:
        assert json.loads(run.stdout) == model.read(page, max_new_tokens=8).text


@pytest.mark.parametrize("package", ["export.check", "runtime"])
def test_nothing_is_recorded_about_the_user(package: str, random_model_folder: Path, tmp_path: Path) -> None:
    """ONNX Runtime would keep a device id and its events in the cache folder."""
    code = f"import sys, {package}, onnxruntime\nonnxruntime.InferenceSession(sys.argv[1])"
    graph = str(random_model_folder / "embed.onnx")
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code, graph], cwd=ROOT, env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
