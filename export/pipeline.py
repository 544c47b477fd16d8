"""The export of one model, from source to published folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from tokenizers import Tokenizer
from tqdm import tqdm

from models.errors import ManifestError
from models.manifest import FILE_NAME, FileInfo, Graph, Manifest, Provider, SourceInfo

from . import publish
from .check import check_graphs
from .checkpoint import Checkpoint, read_json
from .deepseek_ocr import DeepseekOcrExport
from .errors import ExportError
from .family import FamilyExport, GraphName, Parts
from .hub import Source
from .layers import FLOAT, FLOAT16, Precision
from .quantize import Blocks, ErrorMeter
from .weights import DataFile, Load, Weight, weights_of

Dtype = Literal["f32", "f16", "q8", "q4"]
VisionDtype = Literal["f32", "f16", "q8"]
DTYPES: tuple[Dtype, ...] = ("f32", "f16", "q8", "q4")
VISION_DTYPES: tuple[VisionDtype, ...] = ("f32", "f16", "q8")

_FAMILIES: dict[str, Callable[[Checkpoint, Mapping[str, Any]], FamilyExport]] = {"deepseek-ocr": DeepseekOcrExport}

# Channels that share a scale. Larger blocks are faster and smaller, smaller ones are more exact (README, Quantisation).
BLOCK_SIZES: Mapping[str, int] = {"q8": 128, "q4": 64}

_KEPT_FILES = ("config.json", "processor_config.json", "preprocessor_config.json", "generation_config.json")

Precisions = Mapping[Provider, tuple[Precision, Precision]]  # of the vision tower and of the decoder


@dataclass(frozen=True)
class Job:
    """What to export, from where, to where."""

    model_id: str
    family: str
    source: Source
    dtype: Dtype
    target: Path
    vision_dtype: VisionDtype | None = None  # None: float32 for f32, float16 for the others
    block_size: int | None = None  # of quantised weights; None: BLOCK_SIZES
    report: bool = False  # measure the quantisation error of every parameter
    force: bool = False
    config_file: Path | None = None  # these three replace the source's own files
    tokenizer_file: Path | None = None
    weights: Path | None = None


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
        if job.family not in _FAMILIES:
            raise ExportError(f"no exporter for family {job.family!r}; known are {', '.join(_FAMILIES)}")
        checkpoint = Checkpoint(job.source.folder, config_file=job.config_file, weights=job.weights)
        tokenizer_file = _tokenizer_file(job)
        kept = [job.source.folder / name for name in _KEPT_FILES if (job.source.folder / name).is_file()]
        options = f"{job.vision_dtype} {job.block_size} {job.report}"
        fingerprint = _fingerprint([*checkpoint.files, tokenizer_file, *kept], options)
        if not job.force and (present := _present(job, fingerprint)) is not None:
            report(f"{job.target} is there already; --force exports it again")
            return present
        meter = ErrorMeter() if job.report else None
        precisions = _precisions(job, meter)
        vocabulary = _vocabulary(tokenizer_file)
        try:
            family = _FAMILIES[job.family](checkpoint, _processor_config(job))
            parts = {provider: family.parts(*precision) for provider, precision in precisions.items()}
            sizes, tokens = family.sizes, family.tokens(vocabulary)
            image_rules = family.image_rules.model_dump(mode="json")
        except ExportError:
            raise
        except Exception as error:  # whatever a list in place of a number leads to
            raise ExportError(
                f"the configuration in {job.config_file or job.source.folder} has a value of the wrong kind: {error}"
            ) from error
        if (largest := max(vocabulary.values())) >= sizes.vocabulary:
            raise ExportError(
                f"{tokenizer_file} has token ids up to {largest} and the model only {sizes.vocabulary} rows for them; "
                "use the model's own tokenizer"
            )
        stored = _stored_weights(parts)
        weights = [weight for of_graph in stored.values() for weight in of_graph.values()]
        expected = {name: shape for weight in weights for name, shape in weight.recipe.sources.items()}
        checkpoint.check(expected, family.unused)
        publish.check_disk(job.target, sum(weight.nbytes for weight in weights))
        with publish.staged(job.target) as folder:
            millions = checkpoint.parameter_count / 1e6
            report(f"writing {job.dtype} graphs of {job.model_id} ({millions:,.0f} M parameters)")
            hashes = _write_graphs(folder, parts, stored, checkpoint.load)
            report(f"weights written{_peak_memory()}")
            shutil.copyfile(tokenizer_file, folder / "tokenizer.json")
            for file in kept:
                shutil.copyfile(file, folder / file.name)
            if job.config_file is not None:
                shutil.copyfile(job.config_file, folder / "config.json")
            manifest = Manifest(
                id=job.model_id,
                family=job.family,
                dtype=job.dtype,
                created_by=f"ocr-onnx {importlib.metadata.version('ocr-onnx')}",
                source=SourceInfo(
                    origin=job.source.origin,
                    name=job.source.name,
                    revision=job.source.revision,
                    fingerprint=fingerprint,
                ),
                parameters=checkpoint.parameter_count,
                vision=_graph_entry("vision", precisions),
                embed=_graph_entry("embed", precisions),
                decoder=_graph_entry("decoder", precisions),
                report={} if meter is None else {"relative_weight_errors": meter.relative},
                sizes=sizes,
                tokens=tokens,
                image=image_rules,
                files={file.name: _file_info(file, hashes.get(file.name)) for file in sorted(folder.iterdir())},
            )
            report("checking the graphs")
            check_graphs(folder, manifest)
            manifest.save(folder)
        report(f"published {job.target} ({sum(info.size for info in manifest.files.values()) / 1e9:.2f} GB)")
        return manifest


def _precisions(job: Job, meter: ErrorMeter | None) -> Precisions:
    """Which graphs the export has, and in what each keeps its weights and computes.

    The CPU has no float16 products worth using, and GroupQueryAttention has no float32 kernel on CUDA: so an export
    whose weights are float16 or quantised has a graph for each, and a float32 one only the CPU's.
    """
    vision_dtype = job.vision_dtype or ("f32" if job.dtype == "f32" else "f16")
    bits = {"q8": 8, "q4": 4}

    def precision(dtype: str, compute: ir.DataType) -> Precision:
        storage = FLOAT if dtype == "f32" else FLOAT16
        if dtype not in bits:
            return Precision(storage, compute)
        return Precision(storage, compute, Blocks(bits[dtype], job.block_size or BLOCK_SIZES[dtype]), meter)

    both: dict[Provider, tuple[Precision, Precision]] = {
        "cpu": (precision(vision_dtype, FLOAT), precision(job.dtype, FLOAT))
    }
    if job.dtype != "f32":
        both["cuda"] = (precision(vision_dtype, FLOAT16), precision(job.dtype, FLOAT16))
    return both


def _present(job: Job, fingerprint: str) -> Manifest | None:
    """The manifest of a whole export of the very same files, if one is published."""
    if not (job.target / FILE_NAME).is_file():
        return None
    try:
        manifest = Manifest.load(job.target)
    except ManifestError:
        return None
    found = (manifest.id, manifest.family, manifest.dtype, manifest.source.fingerprint)
    return manifest if found == (job.model_id, job.family, job.dtype, fingerprint) else None


def _fingerprint(files: Iterable[Path], options: str) -> str:
    """Hash of the options and of the files' paths, sizes and times.

    Not of their content: reading 7 GB to find that nothing changed would take too long.
    """
    digest = hashlib.sha256(options.encode())
    for file in files:
        status = file.stat()
        digest.update(f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _stored_weights(parts: Mapping[Provider, Parts]) -> dict[GraphName, dict[str, Weight]]:
    """What each graph's data file holds: the weights of all its providers' graphs, most of which they share."""
    stored: dict[GraphName, dict[str, Weight]] = {}
    for by_name in parts.values():
        for name, part in by_name.items():
            weights = stored.setdefault(name, {})
            for parameter, weight in weights_of(part.module).items():
                weights.setdefault(weight.key(parameter), weight)
    return stored


def _write_graphs(
    folder: Path, parts: Mapping[Provider, Parts], stored: Mapping[GraphName, Mapping[str, Weight]], load: Load
) -> dict[str, str]:
    """Write every data file, then the graphs that refer to it; returns the data files' hashes by name."""
    hashes = {}
    total = sum(weight.nbytes for weights in stored.values() for weight in weights.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="weights", mininterval=0.5) as bar:
        for name, weights in stored.items():
            with DataFile(folder / f"{name}.onnx.data") as data:
                for key, weight in weights.items():
                    data.add(key, weight, load, bar)
            hashes[data.path.name] = data.sha256
            for provider, by_name in parts.items():
                graph = by_name[name].declare()
                for parameter, weight in weights_of(by_name[name].module).items():
                    weight.const_value = data.tensor(weight.key(parameter))
                ir.save(ir.Model(graph, ir_version=10), folder / graph_file(name, provider))
    return hashes


def graph_file(name: str, provider: Provider) -> str:
    """File of one graph for one provider."""
    return f"{name}.onnx" if provider == "cpu" else f"{name}.{provider}.onnx"


def _graph_entry(name: str, precisions: Precisions) -> Graph:
    return Graph(
        files={provider: graph_file(name, provider) for provider in precisions},
        compute={
            provider: "float16" if decoder.compute == FLOAT16 else "float32"
            for provider, (_, decoder) in precisions.items()
        },
    )


def _peak_memory() -> str:
    """For the log, where the system tells."""
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


def _vocabulary(tokenizer_file: Path) -> dict[str, int]:
    """Token ids by token."""
    try:
        return Tokenizer.from_file(str(tokenizer_file)).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises plain Exception
        raise ExportError(f"{tokenizer_file} is no tokenizer.json: {error}; download it again") from error


def _file_info(path: Path, sha256: str | None) -> FileInfo:
    if sha256 is None:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(size=path.stat().st_size, sha256=sha256)
