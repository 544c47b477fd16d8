"""The export of one model, from source to published folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import pkgutil
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from tokenizers import Tokenizer

from models.families import FAMILIES
from models.manifest import FILE_NAME, GRAPH_VERSION, FileInfo, Graph, Manifest, Provider, SourceInfo
from models.model_errors import ManifestError
from models.registration import Registration
from models.source_files import describe_files

from . import publish
from .activations import warnings_of
from .check import check_graphs
from .checkpoint import Checkpoint
from .config_values import check_architecture
from .divergence import Divergence, lines_of
from .export_errors import ExportError
from .family import FamilyExport
from .family_check import check_family, image_rules_of
from .graphs import graph_file, stored_weights, write_graphs
from .json_files import read_json
from .layers import BFLOAT16, FLOAT, FLOAT16, Precision
from .quantize import Blocks, ErrorMeter
from .source import Source
from .tokenizer_probe import check_tokenizer

Dtype = Literal["f32", "f16", "bf16", "q8", "q4"]
VisionDtype = Literal["f32", "f16", "bf16", "q8"]
DTYPES: tuple[Dtype, ...] = ("f32", "f16", "bf16", "q8", "q4")
VISION_DTYPES: tuple[VisionDtype, ...] = ("f32", "f16", "bf16", "q8")

_FLOATS: Mapping[str, ir.DataType] = {"f32": FLOAT, "f16": FLOAT16, "bf16": BFLOAT16}

# Channels that share a scale, by bits. Larger blocks are faster and take less space, smaller ones are more exact
# (tools/docs/export.md).
BLOCK_SIZES: Mapping[str, int] = {"q8": 128, "q4": 64}

_KEPT_FILES = (
    "config.json", "processor_config.json", "preprocessor_config.json", "generation_config.json",
    "chat_template.jinja", "chat_template.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip

Exporter = Callable[[Checkpoint, Mapping[str, Any]], FamilyExport]  # the second: processor_config.json
Precisions = Mapping[Provider, tuple[Precision, Precision]]  # precision of the vision tower and of the decoder


@dataclass(frozen=True)
class Job:
    """A model's export: source, options and target."""

    model_id: str
    family: str
    source: Source
    dtype: Dtype
    target: Path
    vision_dtype: VisionDtype | None = None  # None: the decoder's dtype if float, f16 beside a quantised decoder
    block_size: int | None = None  # block size of quantised weights; None: BLOCK_SIZES
    report: bool = False  # measure the quantisation error of every parameter
    force: bool = False
    config_file: Path | None = None  # config, weights and tokenizer replace the source's own files
    tokenizer_file: Path | None = None
    weights: Path | None = None
    adapter: Path | None = None  # folder of a LoRA adapter to merge


def export_model(job: Job, report: Callable[[str], None]) -> Manifest:
    """Convert and publish; does nothing when a good export of the same source is there already.

    Raises
    ------
    ExportError
        for a source that cannot be read or does not fit its config, too little disk, or a graph that fails its check.
        Whatever was published before stays.
    """
    with publish.exclusive(job.target, report):
        publish.sweep(job.target)
        publish.check_replaceable(job.target)
        registration, exporter = _exporter(job.family)
        check_family(registration, exporter)
        checkpoint = Checkpoint(
            job.source.folder, config_file=job.config_file, weights=job.weights, adapter=job.adapter, note=report
        )
        tokenizer_file = _tokenizer_file(job)
        kept = [job.source.folder / name for name in _KEPT_FILES if (job.source.folder / name).is_file()]
        options = f"{_vision_dtype(job)} {_block_size(job)}"
        read = [*checkpoint.files, tokenizer_file, *kept]
        fingerprint = fingerprint_of(read, options)
        if not job.force and (present := _present(job, fingerprint)) is not None:
            report(f"{job.target} is there already; --force exports it again")
            return present
        meter = ErrorMeter() if job.report else None
        precisions = precisions_of(job, meter)
        tokenizer = _tokenizer(tokenizer_file)
        check_tokenizer(tokenizer, tokenizer_file, registration.prompts, registration.models[0].source)
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        try:
            check_architecture(checkpoint.config, registration)
            family = exporter(checkpoint, _processor_config(job))
            parts = {provider: family.parts(*precision) for provider, precision in precisions.items()}
            sizes, tokens = family.sizes, family.tokens(vocabulary)
            image_rules = image_rules_of(family).model_dump(mode="json")
            prompt_rules = family.prompt_rules(vocabulary, special).model_dump(mode="json")
        except ExportError:
            raise
        except ManifestError as error:  # a chat template that the family cannot use
            raise ExportError(str(error)) from error
        except Exception as error:  # such as a list in place of a number
            raise ExportError(
                f"the configuration in {job.config_file or job.source.folder} has a value of the wrong kind: {error}"
            ) from error
        if (largest := max(vocabulary.values())) >= sizes.vocabulary:
            raise ExportError(
                f"{tokenizer_file} has token ids up to {largest} and the model only {sizes.vocabulary} rows for them; "
                "use the model's own tokenizer"
            )
        stored = stored_weights(parts)
        weights = [weight for of_graph in stored.values() for weight in of_graph.values()]
        expected = {name: shape for weight in weights for name, shape in weight.recipe.sources.items()}
        checkpoint.check(expected, family.unused)
        needed = sum(weight.nbytes for weight in weights)
        publish.check_disk(job.target, needed + (checkpoint.nbytes if job.report else 0))
        with publish.staged(job.target) as folder:
            millions = checkpoint.parameter_count / 1e6
            report(f"writing {job.dtype} graphs of {job.model_id} ({millions:,.0f} M parameters)")
            hashes = write_graphs(folder, parts, stored, checkpoint.load)
            report(f"weights written{peak_memory()}")
            shutil.copyfile(tokenizer_file, folder / "tokenizer.json")
            for file in kept:
                shutil.copyfile(file, folder / file.name)
            if job.config_file is not None:
                shutil.copyfile(job.config_file, folder / "config.json")
            manifest = Manifest(
                graph_version=GRAPH_VERSION,
                id=job.model_id,
                family=job.family,
                dtype=job.dtype,
                created_by=f"ocr-onnx {importlib.metadata.version('ocr-onnx')}",
                source=SourceInfo(
                    origin=job.source.origin,
                    name=job.source.name,
                    revision=job.source.revision,
                    fingerprint=fingerprint,
                    files=describe_files(read),
                ),
                parameters=checkpoint.parameter_count,
                vision=_graph_entry("vision", precisions, job.dtype),
                embed=_graph_entry("embed", precisions, job.dtype),
                decoder=_graph_entry("decoder", precisions, job.dtype),
                sizes=sizes,
                tokens=tokens,
                image=image_rules,
                prompt=prompt_rules,
                files={file.name: file_info(file, hashes.get(file.name)) for file in sorted(folder.iterdir())},
            )
            report("checking the graphs")
            manifest = manifest.model_copy(update={"checked": check_graphs(folder, manifest)})
            if manifest.checked["cuda"] != "run":
                report("no CUDA here: of the graphs for it the structure was checked, and they have not been run")
            if meter is not None:
                found = _measured(job, folder, manifest, family, checkpoint, precisions["cpu"], meter, report)
                manifest = manifest.model_copy(update={"report": found})
            manifest.save(folder)
        report(f"published {job.target} ({sum(info.size for info in manifest.files.values()) / 1e9:.2f} GB)")
        return manifest


def _exporter(family: str) -> tuple[Registration, Exporter]:
    """The family's registration and exporter class.

    Raises
    ------
    ExportError
        for a family that cannot be exported.
    """
    registration = FAMILIES.get(family)
    if registration is None or registration.exporter is None:
        known = ", ".join(one.id for one in FAMILIES.values() if one.exporter is not None)
        raise ExportError(f"no exporter for family {family!r}; known are {known}")
    try:
        exporter: Exporter = pkgutil.resolve_name(registration.exporter)
    except (ImportError, AttributeError) as error:
        raise ExportError(f"the exporter of family {family!r}, {registration.exporter}, is missing: {error}") from error
    return registration, exporter


def precisions_of(job: Job, meter: ErrorMeter | None) -> Precisions:
    """The graphs of an export, and each one's types of weights and of computation.

    CUDA's graphs compute in the type of the weights, in float16 where weights are quantised. The CPU has no fast
    products in 16 bits: its graphs widen the weights.
    """
    vision_dtype, block_size = _vision_dtype(job), _block_size(job)
    bits = {"q8": 8, "q4": 4}

    def precision(dtype: str, provider: Provider, **kind: Any) -> Precision:
        storage = _FLOATS.get(dtype, FLOAT16)
        compute = FLOAT if provider == "cpu" else storage
        return Precision(storage, compute, provider=provider, meter=meter, **kind)

    def graphs(provider: Provider) -> tuple[Precision, Precision]:
        blocks = None if block_size is None else Blocks(bits[job.dtype], block_size)
        return (
            precision(vision_dtype, provider, channels=vision_dtype == "q8"),
            precision(job.dtype, provider, blocks=blocks),
        )

    return {"cpu": graphs("cpu"), "cuda": graphs("cuda")}


def _vision_dtype(job: Job) -> VisionDtype:
    """The vision tower's dtype, by default."""
    if job.vision_dtype is not None:
        return job.vision_dtype
    return job.dtype if job.dtype in ("f32", "bf16") else "f16"


def _block_size(job: Job) -> int | None:
    """Channels that share a scale; None for weights without scales."""
    return (job.block_size or BLOCK_SIZES[job.dtype]) if job.dtype in BLOCK_SIZES else None


def _measured(
    job: Job, folder: Path, manifest: Manifest, family: FamilyExport, checkpoint: Checkpoint,
    precision: tuple[Precision, Precision], meter: ErrorMeter, report: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """The manifest's ``report``; its end-to-end part where anything is quantised."""
    found: dict[str, Any] = {"relative_weight_errors": meter.relative}
    if job.dtype == _vision_dtype(job) == "f32":
        report("a float32 export rounds nothing, so nothing is measured")
        return found
    report("measuring the distance from float32")
    tower = precision[0] if job.vision_dtype == "q8" else None
    with publish.scratch(job.target) as scratch:
        compared = Divergence(folder, manifest, family, checkpoint, scratch)
        measured = compared.measure(tower=tower, logits=True)
    for line in (*lines_of(measured), *warnings_of(compared.largest)):
        report(line)
    return found | measured | {"largest_activations": compared.largest}


def _present(job: Job, fingerprint: str) -> Manifest | None:
    """The manifest of a published export of the same files, if it is whole and has a report where one is wanted."""
    if not (job.target / FILE_NAME).is_file():
        return None
    try:
        manifest = Manifest.load(job.target)
    except ManifestError:
        return None
    found = (manifest.id, manifest.family, manifest.dtype, manifest.source.fingerprint)
    same = found == (job.model_id, job.family, job.dtype, fingerprint)
    outdated = any(manifest.outdated_on(provider) for provider in manifest.decoder.files)
    return manifest if same and not outdated and (manifest.report or not job.report) else None


def fingerprint_of(files: Iterable[Path], options: str) -> str:
    """Hash of the options and of the files' paths, sizes and times.

    Content is not hashed: reading 7 GB to find no change would take too long.
    """
    digest = hashlib.sha256(options.encode())
    for file in files:
        status = file.stat()
        digest.update(f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _graph_entry(name: str, precisions: Precisions, dtype: Dtype) -> Graph:
    """The manifest's entry of a graph. A bfloat16 export's CPU graphs are for comparisons, not for serving."""
    names: Mapping[ir.DataType, Literal["float32", "float16", "bfloat16"]]
    names = {FLOAT: "float32", FLOAT16: "float16", BFLOAT16: "bfloat16"}
    served = {provider: both for provider, both in precisions.items() if provider != "cpu" or dtype != "bf16"}
    return Graph(
        files={provider: graph_file(name, provider) for provider in served},
        compute={
            provider: names[(vision if name == "vision" else decoder).compute]
            for provider, (vision, decoder) in served.items()
        },
    )


def peak_memory() -> str:
    """Peak memory for the log, where the system tells."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f" (peak memory {peak / 1e9:.2f} GB)"


def _processor_config(job: Job) -> Mapping[str, Any]:
    path = job.source.folder / "processor_config.json"
    return read_json(path) if path.is_file() else {}


def _tokenizer_file(job: Job) -> Path:
    path = job.tokenizer_file or job.source.folder / "tokenizer.json"
    if not path.is_file():
        raise ExportError(f"{path} is missing; the model needs its tokenizer (--tokenizer names another)")
    return path


def _tokenizer(tokenizer_file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # tokenizers raises plain Exception
        raise ExportError(f"{tokenizer_file} is no tokenizer.json: {error}; download it again") from error
    # As in the runtime: a training run may have left truncation and padding in the file.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def file_info(path: Path, sha256: str | None) -> FileInfo:
    if sha256 is None:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(size=path.stat().st_size, sha256=sha256)
