"""Checkpoints from the Hugging Face hub, or from ModelScope when that hub cannot be reached. Needs the ``export``
extra."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import NoReturn

import httpx2
from huggingface_hub import HfApi, constants, get_token, hf_hub_url, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.file_download import are_symlinks_supported, repo_folder_name
from huggingface_hub.utils.tqdm import disable_progress_bars

from . import modelscope
from .download import (
    RemoteFile,
    Report,
    Unreachable,
    download,
    is_digest,
    is_temporary,
    mismatch,
    wanted,
)
from .export_errors import ExportError
from .source import Source
from .weight_files import MissingWeights, weight_files

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def fetch(
    source: str, revision: str | None, *, offline: bool, report: Report, cache: Path, replaced: Sequence[str] = ()
) -> Source:
    """Find or download the checkpoint of a hub id; see ``fetching.fetch``.

    ``HF_HOME``, ``HF_TOKEN``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are honoured.

    Raises
    ------
    ExportError
        for a missing model, a refusal, damaged files, or when neither hub can be reached.
    """
    if not _HUB_ID.fullmatch(source) or ".." in source or "--" in source:
        raise ExportError(f"{source!r} is neither a directory nor a hub id; hub ids look like owner/name")

    if offline or constants.is_offline_mode():
        found = _from_caches(source, revision, cache, replaced)
        return found or _not_cached(source, revision)
    try:
        return _download(source, revision, report, replaced)
    except Unreachable as hub_error:
        report(str(hub_error))
        if found := _from_hub_cache(source, revision, replaced):
            report(f"using the files of {source} at {found.revision} that were downloaded earlier")
            return found
        report(f"trying ModelScope's copy of {source}")
        try:
            copy, commit = modelscope.fetch(source, revision, cache, report)
        except Unreachable as copy_error:
            if found := _from_copy_cache(source, revision, cache, replaced):
                report(f"{copy_error}; using the copy of {source} at {found.revision} that was downloaded earlier")
                return found
            raise _both_failed(source, hub_error, copy_error) from copy_error
        except ExportError as copy_error:
            raise _both_failed(source, hub_error, copy_error) from copy_error
        return Source(copy, source, commit, "modelscope")


def _download(repo: str, revision: str | None, report: Report, replaced: Sequence[str]) -> Source:
    """Fetch from the Hugging Face hub into its own cache."""
    with _hub_errors(repo, revision):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        commit = info.sha
        if not commit or not is_digest(commit):
            raise ValueError(f"commit {commit!r}")
        files = []
        for entry in info.siblings or ():
            if _is_needed(entry.rfilename, replaced):
                size, digest = (entry.lfs.size, entry.lfs.sha256) if entry.lfs else (entry.size, entry.blob_id)
                if size is None or digest is None:
                    raise ValueError(f"the answer gives no size or hash of {entry.rfilename}")
                files.append(
                    RemoteFile(entry.rfilename, hf_hub_url(repo, entry.rfilename, revision=commit), size, digest)
                )
        if not replaced and not any(file.path.endswith(".safetensors") for file in files):
            raise ExportError(
                f"{constants.ENDPOINT}/{repo} has no safetensors files at revision {revision or 'main'!r}"
            )
        report(f"{repo} at {commit}: {sum(file.size for file in files) / 1e9:.2f} GB in {len(files)} files")
        download(
            [(file, _place(repo, commit, file)) for file in files],
            lock=Path(constants.HF_HUB_CACHE) / ".locks" / _folder_name(repo) / "ocr-onnx.lock",
            headers=_headers(),
            report=report,
        )
        # Every file is in the hub's cache now, under its hash; huggingface_hub only links them to a snapshot.
        disable_progress_bars()
        folder = snapshot_download(repo, revision=commit, allow_patterns=[file.path for file in files])
    _remember(repo, revision, commit)
    return Source(Path(folder), repo, commit, "huggingface")


def _place(repo: str, commit: str, file: RemoteFile) -> Path:
    """A file's place in the hub's cache: ``blobs/<hash>``, or the snapshot where there are no symbolic links."""
    storage = _storage(repo)
    in_snapshot = storage / "snapshots" / commit / file.path
    if in_snapshot.is_file() and not in_snapshot.is_symlink():
        return in_snapshot
    return storage / "blobs" / file.digest if are_symlinks_supported(constants.HF_HUB_CACHE) else in_snapshot


def _remember(repo: str, revision: str | None, commit: str) -> None:
    """Record a branch's commit in the hub's own format, once all files are here: offline runs start from it."""
    if revision != commit:
        ref = _storage(repo) / "refs" / (revision or constants.DEFAULT_REVISION)
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="utf-8")


def _headers() -> dict[str, str]:
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return {"User-Agent": "ocr-onnx"} | ({"Authorization": f"Bearer {token}"} if token else {})


def _folder_name(repo: str) -> str:
    return repo_folder_name(repo_id=repo, repo_type="model")


def _storage(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / _folder_name(repo)


def _from_caches(repo: str, revision: str | None, cache: Path, replaced: Sequence[str]) -> Source | None:
    return _from_hub_cache(repo, revision, replaced) or _from_copy_cache(repo, revision, cache, replaced)


def _from_hub_cache(repo: str, revision: str | None, replaced: Sequence[str]) -> Source | None:
    """The files that any program downloaded from the Hugging Face hub, if all that an export needs are there.

    The hub's library would reject a snapshot for lack of a file that is not read here.
    """
    commit = revision if revision and is_digest(revision) else _ref(repo, revision)
    folder = _storage(repo) / "snapshots" / commit if commit else None
    if commit is None or folder is None or not _is_whole(folder, replaced):
        return None
    for file in filter(Path.is_symlink, folder.iterdir()):
        digest = file.readlink().name  # blobs are named by their hash
        if _is_needed(file.name, replaced) and is_digest(digest) and (wrong := mismatch(file, None, digest)):
            raise ExportError(f"{file} is damaged ({wrong}); run once online to have it fetched again")
    return Source(folder, repo, commit, "huggingface")


def _ref(repo: str, revision: str | None) -> str | None:
    """The commit of a branch or tag when it was last fetched."""
    try:
        return (_storage(repo) / "refs" / (revision or constants.DEFAULT_REVISION)).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def _from_copy_cache(repo: str, revision: str | None, cache: Path, replaced: Sequence[str]) -> Source | None:
    """The files from ModelScope: our own copy, or its client's cache."""
    if copy := modelscope.cached(repo, revision, cache):
        return Source(copy[0], repo, copy[1], "modelscope")
    folders = modelscope.client_folders(repo) if revision in (None, "main", "master") else []
    found = next((folder for folder in folders if _is_whole(folder, replaced)), None)
    return Source(found, repo, None, "modelscope") if found else None


def _is_whole(folder: Path, replaced: Sequence[str]) -> bool:
    """Whether a folder has every file that an export needs."""
    needed = [name for name in ("config.json", "tokenizer.json") if not _matches(name, replaced)]
    if not all((folder / name).is_file() for name in needed):
        return False
    if _matches("model.safetensors", replaced):
        return True
    try:
        weight_files(folder, lambda line: None)
    except MissingWeights:
        return False
    except ExportError:
        return any(folder.glob("*.safetensors"))  # a damaged index: the exporter explains it
    return True


def _is_needed(name: str, replaced: Sequence[str]) -> bool:
    return wanted(name) and not _matches(name, replaced)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _both_failed(repo: str, hub_error: ExportError, copy_error: ExportError) -> ExportError:
    return ExportError(
        f"{repo} could not be downloaded.\n  Hugging Face: {hub_error}\n  ModelScope: {copy_error}\n"
        "Run the same command again to go on where it stopped, set HF_ENDPOINT to a mirror of the hub, or fetch the "
        "files in another way and name their directory with --source."
    )


def _not_cached(repo: str, revision: str | None) -> NoReturn:
    at = f" at revision {revision}" if revision else ""
    raise ExportError(
        f"{repo}{at} is not in the local cache ({constants.HF_HUB_CACHE}) and downloads are off. Run the same command "
        "once with a network, without --offline and without HF_HUB_OFFLINE, or name a local directory with --source."
    )


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turn errors of hub and network into ``Unreachable``, or an error that names the remedy."""
    hub = constants.ENDPOINT
    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPStatusError) as error:
        status, code = error.response.status_code, error.response.headers.get("X-Error-Code", "")
        if is_temporary(status):
            raise Unreachable(f"{hub} answered {status} to {error.response.url}") from error
        token = "the access token (HF_TOKEN) does not help" if get_token() else "no access token is set (HF_TOKEN)"
        if code == "RevisionNotFound":
            reason = f"{hub}/{repo} has no revision {revision!r}; leave --revision out for the newest"
        elif code == "GatedRepo" or status == 403:
            reason = f"{hub}/{repo} is not open to you ({status}), and {token}; accept the model's terms on that page"
            reason += " and set HF_TOKEN to a token of that account"
        elif status in (401, 404):
            reason = f"{hub} knows no model {repo!r} that it would show you ({status}), and {token}; check the spelling"
            reason += ", and for a private model set HF_TOKEN"
        else:
            reason = f"{hub} refused {repo}: {status} for {error.response.url}"
        raise ExportError(reason) from error
    except (httpx2.TransportError, LocalEntryNotFoundError) as error:
        raise Unreachable(f"{hub} cannot be reached: {error or type(error).__name__}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise Unreachable(f"{hub} does not answer as the hub does ({error!r}); is HF_ENDPOINT right?") from error
