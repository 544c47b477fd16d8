"""Throw-away environments: one folder for each set of packages, kept for the next run where a folder is named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

from .catalogue import Client

INSTALL_SECONDS = 3600
TORCH = "OCR_ONNX_TORCH"  # requirement for torch, for docling and Open WebUI: torch==2.13.0+cpu
TORCH_INDEX = "OCR_ONNX_TORCH_INDEX"  # index for torch alone, as in tools/dev


class CannotInstall(Exception):
    """A client that is not to be had here; the message says why."""


class Environment:
    """The packages of one client."""

    def __init__(self, root: Path, client: Client) -> None:
        kind = "node" if client.is_node else "python"
        name = re.sub(r"[^a-z0-9]+", "-", " ".join(client.packages).lower()).strip("-")
        self._folder, self._client = root / f"{kind}-{name}", client

    def command(self, script: Path) -> list[str]:
        """What runs a probe."""
        return ["node", str(script)] if self._client.is_node else [str(self._bin / "python"), str(script)]

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that a probe needs to find the packages."""
        if self._client.is_node:
            return {"CLIENT_MODULES": str(self._folder / "node_modules")}
        return {"PATH": f"{self._bin}{os.pathsep}{os.environ['PATH']}"}

    def install(self) -> None:
        """Make the environment, unless it exists.

        Raises
        ------
        CannotInstall
            when the package manager is missing or fails.
        """
        done = self._folder / ".installed"
        if done.is_file():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._client.is_node:
            (self._folder / "package.json").write_text("{}")
            _run(["npm", "install", "--no-fund", "--no-audit", *self._client.packages], self._folder)
        else:
            venv.create(self._folder, with_pip=True)
            pip = [str(self._bin / "python"), "-m", "pip", "install", "-q"]
            if self._client.needs_torch:
                index = ["--index-url", os.environ[TORCH_INDEX]] if TORCH_INDEX in os.environ else []
                _run([*pip, *index, os.environ.get(TORCH, "torch")], self._folder)
            _run([*pip, *self._client.packages], self._folder)
        done.touch()

    def version(self) -> str:
        """Of the client's first package."""
        name = re.split(r"[\[=<>~!]", self._client.packages[0], maxsplit=1)[0]
        if self._client.is_node:
            found: str = json.loads((self._folder / "node_modules" / name / "package.json").read_text())["version"]
            return found
        code = f"from importlib.metadata import version; print(version({name!r}))"
        return _run([str(self._bin / "python"), "-c", code], self._folder).strip()

    @property
    def _bin(self) -> Path:
        return self._folder / ("Scripts" if sys.platform == "win32" else "bin")


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=True)
    except FileNotFoundError as error:
        raise CannotInstall(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise CannotInstall(f"{' '.join(command[:4])} took more than {INSTALL_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "").strip().splitlines()
        raise CannotInstall(lines[-1][:200] if lines else f"{command[0]} failed") from error
    return done.stdout
