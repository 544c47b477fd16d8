"""``ocr-onnx export MODEL``, which is also installed as ``ocr-onnx-export`` and runs as ``python -m export``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from models.arguments import Parser, add_config_flags, read_config
from models.catalog import CATALOG, SUPPORTED_FAMILIES, require_supported
from models.config import Config
from models.layout.detectors import DETECTORS
from models.model_errors import ModelError
from models.registration import ModelEntry

from . import fetching, source
from .export_errors import ExportError
from .layout.bringing import Bringing, check_asked_for

_BUILT_IN = ", ".join(entry.id for entry in CATALOG.values() if entry.family in SUPPORTED_FAMILIES)
DESCRIPTION = f"""\
Convert a published OCR model into a folder of ONNX graphs that ocr-onnx-serve and the Python API load.

MODEL_ID is a built-in id ({_BUILT_IN}) or an entry [models.entries.MODEL_ID] of config.toml.
Layout detectors, which models that read whole pages block by block bring along: {", ".join(DETECTORS)}.
"""
EXAMPLES = """\
examples:
  ocr-onnx export deepseek-ocr                             download, convert to 8 bits, publish in the cache
  ocr-onnx export deepseek-ocr --dtype f32                 exact: four times the size
  ocr-onnx export deepseek-ocr --dtype f16                 what CUDA needs
  ocr-onnx export deepseek-ocr --dtype q4 --vision-dtype q8    smallest and fastest on a CPU
  ocr-onnx export deepseek-ocr --source ~/my-fine-tune     a directory with config.json, tokenizer and safetensors
  ocr-onnx export deepseek-ocr --adapter ~/my-lora          merged with a LoRA adapter's change
  ocr-onnx export deepseek-ocr --weights W --tokenizer T --model-config C     these three, and no hub or cache
  ocr-onnx export deepseek-ocr --revision COMMIT           a pinned revision of the hub repository
  ocr-onnx export tiny-ocr --output /srv/models/tiny       publish somewhere else
  ocr-onnx export paddleocr-vl-1.6 --layout none           without the layout detector, which whole pages need
  ocr-onnx export deepseek-ocr --layout v3                 with one, for reading dense pages block by block
  ocr-onnx export pp-doclayout-v3 --source ~/detector      a detector alone

HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured; when the Hugging Face hub cannot be reached,
ModelScope's copy of the same id is tried.
"""


# Files that are not needed with each flag that replaces a file.
_REPLACED = {"config": "config.json", "tokenizer": "tokenizer.json", "weights": "*.safetensors*"}


def build_parser() -> argparse.ArgumentParser:
    """A parser of all flags. A flag that is not given is absent from the result."""
    parser = Parser(
        prog="ocr-onnx-export", description=DESCRIPTION, epilog=EXAMPLES, argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags, for this program and for ``ocr-onnx export``."""
    parser.add_argument("model_id", metavar="MODEL_ID")
    parser.add_argument("--source", metavar="DIR|HUB_ID", help="where the checkpoint is (default: the entry's own)")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of the hub repository")
    parser.add_argument(
        "--dtype",
        choices=("f32", "f16", "bf16", "q8", "q4"),
        help="type of the weights (default: config.toml's; else f16 where that has device cuda or coreml, "
        "and on a CPU q8, or f32 for models under 100 M parameters); bf16 is for CUDA only",
    )
    parser.add_argument(
        "--vision-dtype",
        choices=("f32", "f16", "bf16", "q8"),
        help="type of the vision tower (default: that of a float decoder, else f16)",
    )
    parser.add_argument(
        "--block-size", type=int, choices=(16, 32, 64, 128), help="channels that share a scale (default: q8 128, q4 64)"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="measure what quantisation costs: the error of each weight, and how far features and logits are from "
        "float32 on two drawn pages; takes minutes, and disk for the checkpoint once more",
    )
    parser.add_argument(
        "--layout",
        metavar="none|v2|v3|DIR",
        help="layout detector to export along (default: the model's own; needs the extra layout)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to publish (default: in the cache)")
    add_config_flags(parser)
    parser.add_argument("--force", action="store_true", help="export again even if a good export is there")
    parser.add_argument("--offline", action="store_true", help="use only what is on this machine")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json to use instead of the source's")
    parser.add_argument("--weights", type=Path, metavar="PATH", help="safetensors to use instead of the source's")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="LoRA adapter, as PEFT saves it, to merge")
    parser.add_argument("--model-config", type=Path, metavar="FILE", help="config.json to use instead of the source's")


def main(argv: Sequence[str] | None = None) -> int:
    """Export one model. Returns 0, or 1 after an error that was explained on standard error."""
    return run(vars(build_parser().parse_args(argv)))


def run(given: Mapping[str, Any]) -> int:
    """See ``main``. ``given``: the parsed flags."""
    try:
        _export(given)
    except (ExportError, ModelError, OSError) as error:  # OSError: a full disk, a read-only folder
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was published", file=sys.stderr)
        return 130
    return 0


def _export(given: Mapping[str, Any]) -> None:
    """Resolve the entry, fetch the source, convert.

    Raises
    ------
    ExportError, ConfigError
        see ``export.pipeline.export_model``, ``export.fetching.fetch`` and ``models.config.load_config``.
    """
    config = read_config(given)
    bringing = Bringing(config.cache_dir, given.get("offline", False), given.get("force", False), report)
    if (detector := DETECTORS.get(given["model_id"])) is not None:
        _refuse_flags_of_models(given)
        _pipeline()
        source_of_it = given.get("source", detector.source)
        bringing.detector(detector, source_of_it, given.get("revision"), given.get("output"))
        return
    entry = _with_flags(config.entry(given["model_id"]), given)
    require_supported(entry)
    check_asked_for(given.get("layout"))
    pipeline = _pipeline()
    dtype = given.get("dtype") or config.dtype_of(entry, _device(config))
    if dtype not in pipeline.DTYPES:
        known = ", ".join(pipeline.DTYPES)
        raise ExportError(f"{entry.id} asks for {dtype}, which cannot be exported; --dtype takes one of {known}")
    offline = given.get("offline", False)
    has_source = "source" in given or Path(entry.source).expanduser().is_dir()
    if entry.config and entry.tokenizer and entry.weights and not has_source:
        found = source.of_files(entry.config, entry.weights)
    else:
        replaced = [pattern for name, pattern in _REPLACED.items() if getattr(entry, name) is not None]
        found = fetching.fetch(
            entry.source, entry.revision, offline=offline, report=report, cache=config.cache_dir, replaced=replaced
        )
    job = pipeline.Job(
        model_id=entry.id,
        family=entry.family,
        source=found,
        dtype=dtype,
        target=(given.get("output") or config.export_dir(entry, dtype)).expanduser().resolve(),
        vision_dtype=given.get("vision_dtype"),
        block_size=given.get("block_size"),
        report=given.get("report", False),
        force=given.get("force", False),
        config_file=entry.config,
        tokenizer_file=entry.tokenizer,
        weights=entry.weights,
        adapter=entry.adapter,
    )
    pipeline.export_model(job, report)
    if "layout" in given:
        bringing.asked_for(given["layout"])
    else:
        bringing.usual(entry, from_hub=found.origin != "directory")


def _pipeline() -> ModuleType:
    """The module that imports what exporting needs.

    Raises
    ------
    ExportError
        with the line that installs it.
    """
    try:
        from . import pipeline
    except ImportError as error:
        raise ExportError(
            f"exporting needs more packages ({error}); install them with: pip install 'ocr-onnx[export,cpu]'"
        ) from error
    return pipeline


def _refuse_flags_of_models(given: Mapping[str, Any]) -> None:
    """Raises ExportError for a flag that has no meaning for a layout detector."""
    known = {
        "model_id",
        "source",
        "revision",
        "output",
        "config",
        "init_config",
        "offline",
        "force",
        "command",
        "run",
        "usage_error",
    }
    for flag in given.keys() - known:
        if given[flag] not in (None, False):
            raise ExportError(
                f"--{flag.replace('_', '-')} is of models that read; {given['model_id']} is a layout detector, "
                "with one export for all devices"
            )


def _device(config: Config) -> str:
    """The server's device, by config.toml."""
    if config.device != "auto":
        return config.device or "cpu"
    from .check import best_device  # imports ONNX Runtime, which is installed by now

    return best_device()


def report(line: str) -> None:
    """Progress goes to standard error, line by line, so that a parent process can log it."""
    print(line, file=sys.stderr, flush=True)


def _with_flags(entry: ModelEntry, given: Mapping[str, Any]) -> ModelEntry:
    """The entry with the command line's replacements."""
    if "source" in given:
        # Another source has other revisions: the entry's own pin does not apply to it.
        entry = replace(entry, source=given["source"], revision=None)
    flags = {
        "revision": "revision", "config": "model_config", "tokenizer": "tokenizer", "weights": "weights",
        "adapter": "adapter",
    }  # fmt: skip
    return replace(entry, **{field: given[flag] for field, flag in flags.items() if flag in given})
