"""ModelScope's copy of a model, used when the Hugging Face hub cannot be reached (as in deepseek-ocr.rs).

The HTTP interface is the one that deepseek-ocr.rs (crates/assets/src/providers/modelscope.rs) and ModelScope's own
client (modelscope/hub/api.py, get_model_files) use; it has no published specification:

    GET /api/v1/models/{id}/repo/files?Revision={branch, tag or commit}&Recursive=true
        {"Code": 200, "Data": {"Files": [{"Path", "Type": "blob" | "tree", "Size", "Sha256", "Revision"}, ...],
                               "LatestCommitter": {"Id", "ShortId"}}}
        A file's Revision is the commit that changed it last. An unknown revision is answered with "Files": null.
    GET /models/{id}/resolve/{revision}/{path}      the file, possibly by redirect, with Range support

Files land in ``<cache>/downloads/modelscope/<owner>/<name>/<revision>/``. ``listing.json`` beside them is written last:
where it is, the files it names were whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from .download import RemoteFile, Report, Unreachable, download, is_temporary, mismatch, wanted
from .export_errors import ExportError

DEFAULT_ENDPOINT = "https://modelscope.cn"
_LISTING = "listing.json"
_TIMEOUT_S = 15.0


def fetch(repo: str, revision: str | None, cache: Path, report: Report) -> tuple[Path, str]:
    """Download the copy of ``repo``; returns its folder and the commit.

    Raises
    ------
    Unreachable
        when ModelScope does not answer.
    ExportError
        for an unknown model or revision, or damaged files.
    """
    branch = _branch(revision)
    try:
        commit, files = _list(repo, branch)
        folder = _folder(repo, branch, cache)
        places = [(file, folder / file.path) for file in files]
        download(places, lock=folder / ".lock", headers={}, report=report)
    except httpx2.HTTPStatusError as error:
        status = error.response.status_code
        if is_temporary(status):
            raise Unreachable(f"{endpoint()} answered {status} to {error.request.url}") from error
        raise ExportError(f"{endpoint()} shows no model {repo!r} ({status} for {error.request.url})") from error
    except httpx2.TransportError as error:
        raise Unreachable(f"{endpoint()} cannot be reached: {error or type(error).__name__}") from error
    listing = {"commit": commit, "files": [asdict(file) for file in files]}
    (folder / _LISTING).write_text(json.dumps(listing, indent=2), encoding="utf-8")
    return folder, commit


def cached(repo: str, revision: str | None, cache: Path) -> tuple[Path, str] | None:
    """Folder and commit of an earlier download, if still whole."""
    folder = _folder(repo, _branch(revision), cache)
    try:
        listing = json.loads((folder / _LISTING).read_text(encoding="utf-8"))
        files = [RemoteFile(**file) for file in listing["files"]]
        if any(mismatch(folder / file.path, file.size, file.digest) for file in files):
            return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return folder, listing["commit"]


def client_folders(repo: str) -> list[Path]:
    """Folders where versions of ModelScope's own client keep a model, below ``MODELSCOPE_CACHE``."""
    root = Path(os.environ.get("MODELSCOPE_CACHE", "~/.cache/modelscope")).expanduser()
    place = repo.replace(".", "___")  # dots in that client's folder names
    roots = (root / "hub" / "models", root / "models", root / "hub", root)
    return [folder / name for folder in roots for name in dict.fromkeys((place, repo)) if (folder / name).is_dir()]


def endpoint() -> str:
    """The server's address; ``MODELSCOPE_ENDPOINT`` names another."""
    return os.environ.get("MODELSCOPE_ENDPOINT", DEFAULT_ENDPOINT).rstrip("/")


def _list(repo: str, branch: str) -> tuple[str, list[RemoteFile]]:
    """Resolve the branch to a commit, and list that commit's files."""
    response = httpx2.get(
        f"{endpoint()}/api/v1/models/{repo}/repo/files",
        params={"Revision": branch, "Recursive": "true"},
        follow_redirects=True,
        timeout=_TIMEOUT_S,
    )
    response.raise_for_status()
    try:
        data = response.json()["Data"]
        entries = [entry for entry in data["Files"] or () if entry["Type"] == "blob" and wanted(entry["Path"])]
        commit = _commit(data, branch)
        root = f"{endpoint()}/models/{repo}/resolve/{quote(commit, safe='')}"
        files = [
            RemoteFile(entry["Path"], f"{root}/{quote(entry['Path'])}", int(entry["Size"]), entry["Sha256"])
            for entry in entries
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{response.url} answered something that is no list of files: {error!r}") from error
    if not any(file.path.endswith(".safetensors") for file in files):
        raise ExportError(f"{endpoint()} has no safetensors files of {repo} at revision {branch!r}")
    return commit, files


def _commit(data: Mapping[str, Any], branch: str) -> str:
    """The full id of the newest commit; often only its first digits are given, beside the files' own commits."""
    newest = data.get("LatestCommitter") or {}
    if newest.get("Id"):
        return str(newest["Id"])
    short = newest.get("ShortId")
    commits = {str(entry.get("Revision") or "") for entry in data["Files"] or ()}
    return next((commit for commit in commits if short and commit.startswith(short)), branch)


def _branch(revision: str | None) -> str:
    return "master" if revision in (None, "main") else str(revision)


def _folder(repo: str, branch: str, cache: Path) -> Path:
    return cache / "downloads" / "modelscope" / repo / quote(branch, safe="")
