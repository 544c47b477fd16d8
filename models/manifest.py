"""manifest.json: all that the runtime needs to know about an exported folder.

The exporter writes it last, so a folder with a manifest is a whole one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from .model_errors import ManifestError

FILE_NAME = "manifest.json"
FORMAT = 2  # incremented when the runtime can no longer read older folders

# Incremented when graphs are declared anew because older ones are wrong somewhere (see ``Manifest.outdated_on``). 2:
# QMoE says that its weights are not packed; without that, CUDA reads them as noise.
GRAPH_VERSION = 2

Provider = Literal["cpu", "cuda"]
Checked = Literal["run", "structure only, not run"]  # checked by the exporter, where the machine had the provider


class ManifestPart(BaseModel):
    """A part of a manifest: frozen, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceFile(ManifestPart):
    """One file that the exporter read."""

    size: int  # bytes
    modified_ns: int
    sha256: str | None = None  # hash, of small files only


class SourceInfo(ManifestPart):
    """Where the checkpoint came from."""

    origin: Literal["directory", "huggingface", "modelscope"]
    name: str
    revision: str | None = None
    fingerprint: str  # changes with any change in a file that was read
    files: Mapping[str, SourceFile] = {}  # the files that were read, by absolute path; see models.source_files


class FileInfo(ManifestPart):
    """One file of the folder."""

    size: int  # bytes
    sha256: str


class Graph(ManifestPart):
    """One part of the model: a graph for each provider (on a shared data file), and the types in which graphs compute.

    A provider that is not named has no graph. CoreML uses that of ``cpu``.
    """

    files: Mapping[Provider, str]
    compute: Mapping[Provider, Literal["float32", "float16", "bfloat16"]]


class RotaryInfo(ManifestPart):
    """How positions become angles, where the decoder gets its angles from the host (see ``models.rotary``)."""

    theta: float
    sections: tuple[int, ...]  # pairs of channels that each axis of the positions turns, in this order


class DecoderInfo(ManifestPart):
    """Sizes of the KV cache and the logits."""

    layers: int
    hidden_size: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_length: int  # prompt and answer together, tokens
    rotary: RotaryInfo | None = None  # None: the graph counts tokens and computes angles itself
    window: int | None = None  # answer tokens that each of them attends to, itself included; None: all


class TokenIds(ManifestPart):
    """Ids of special tokens."""

    bos: int
    eos: tuple[int, ...]
    image: int  # the placeholder, one for each image feature


class _Format(BaseModel):
    kind: str = "model"
    format: int


class FolderManifest(ManifestPart):
    """Fields of every exported folder's manifest: a model's, and a layout detector's (``models.layout.manifest``)."""

    KIND: ClassVar[str] = "model"  # the manifests of models leave this key out
    FORMAT: ClassVar[int] = FORMAT

    format: int = FORMAT
    id: str
    dtype: Literal["f32", "f16", "bf16", "q8", "q4"]
    created_by: str  # program and version
    source: SourceInfo
    parameters: int
    files: Mapping[str, FileInfo]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder's manifest, and check its files' sizes (hashes: see ``verify``).

        Raises
        ------
        ManifestError
            when the manifest is missing, damaged or of another format, or a file is missing or of another size.
        """
        restore_retired(folder)
        manifest = cls.peek(folder)
        for name, info in manifest.files.items():
            file = folder / name
            size = file.stat().st_size if file.is_file() else None
            if size != info.size:
                found = "missing" if size is None else f"{size} bytes"
                raise ManifestError(f"{file} is {found}, expected {info.size} bytes; export again with --force")
        return manifest

    @classmethod
    def peek(cls, folder: Path) -> Self:
        """Read a folder's manifest without checking files.

        Raises
        ------
        ManifestError
            when the manifest is missing, damaged, of another format, or of another kind of folder.
        """
        path = folder / FILE_NAME
        text = _text(path)
        try:
            said = _Format.model_validate_json(text)  # first: other formats may differ in everything else
            if said.kind != cls.KIND:
                raise ManifestError(f"{path} is of a {said.kind}, and a {cls.KIND} is wanted here; name another folder")
            if said.format != cls.FORMAT:
                raise ManifestError(
                    f"{path} has format {said.format}, this version reads {cls.FORMAT}; export the model again"
                )
            return cls.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "the file"
            raise ManifestError(f"{path}: {where}: {problem['msg']}; export the model again with --force") from error

    def save(self, folder: Path) -> None:
        """Write manifest.json into the folder."""
        (folder / FILE_NAME).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def verify(self, folder: Path) -> None:
        """Read every file and compare its hash.

        Raises
        ------
        ManifestError
            naming the first file that differs.
        """
        for name, info in self.files.items():
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != info.sha256:
                raise ManifestError(f"{folder / name} has sha256 {found}, expected {info.sha256}; export again")


class Manifest(FolderManifest):
    """The manifest of a model's exported folder."""

    graph_version: int = 1  # version of the graphs' declaration; missing in old folders
    family: str
    vision: Graph
    embed: Graph
    decoder: Graph
    sizes: DecoderInfo
    tokens: TokenIds
    image: Mapping[str, Any]  # read by the family: patch size, default view sizes, ...
    prompt: Mapping[str, Any] = {}  # read by the family, where a checkpoint says how prompts are written
    checked: Mapping[Provider, Checked] = {}
    report: Mapping[str, Any] = {}  # measured errors, when the export was asked for them

    @property
    def max_length(self) -> int:
        return self.sizes.max_length

    @property
    def providers(self) -> list[Provider]:
        """The providers that the folder has graphs for."""
        return sorted(self.decoder.files)

    def with_context(self, most: int | None) -> Self:
        """The manifest with at most ``tokens`` tokens of prompt and answer together; None: unchanged."""
        length = self.max_length if most is None else min(most, self.max_length)
        return self.model_copy(update={"sizes": self.sizes.model_copy(update={"max_length": length})})

    def outdated_on(self, provider: Provider) -> bool:
        """Whether these graphs give wrong results on the provider, and must be exported again."""
        return provider == "cuda" and self.dtype in ("q8", "q4") and self.graph_version < 2


def kind_of(folder: Path) -> str:
    """The kind of folder that a manifest is of: "model" or another.

    Raises
    ------
    ManifestError
        when the manifest is missing or cannot be read.
    """
    path = folder / FILE_NAME
    try:
        return _Format.model_validate_json(_text(path)).kind
    except ValidationError as error:
        raise ManifestError(f"{path} is damaged ({error.errors()[0]['msg']}); export again with --force") from error


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{path} is missing; export the model first: ocr-onnx export MODEL_ID") from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error


def lock_file(folder: Path) -> Path:
    """The lock file that an export of a folder holds."""
    return folder.parent / f".{folder.name}.lock"


def retired_folder(folder: Path) -> Path:
    """Where an old export is for the moment in which a new one takes its place."""
    return folder.parent / f".{folder.name}.retired"


def restore_retired(folder: Path) -> None:
    """Put an old export back when the exporter that moved it aside was killed before the new one was in its place."""
    retired = retired_folder(folder)
    while retired.exists() and not folder.exists():
        try:
            with FileLock(lock_file(folder)).acquire(timeout=0.1):
                if retired.exists() and not folder.exists():
                    retired.rename(folder)
        except Timeout:
            continue  # an exporter is alive, and about to put one of the two in place
        except OSError:
            return  # a read-only place: the caller finds the folder missing
