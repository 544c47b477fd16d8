"""``python -m export MODEL_ID`` (also installed as ``ocr-onnx-export``)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.catalog import CATALOG, SUPPORTED_FAMILIES, ModelEntry, require_supported
from models.config import Config, load_config
from models.errors import ModelError
from models.paths import export_dir

from .errors import ExportError

_BUILT_IN = ", ".join(entry.id for entry in CATALOG.values() if entry.family in SUPPORTED_FAMILIES)
DESCRIPTION = f"""\
Convert a published OCR model into a folder of ONNX graphs that ocr-onnx-serve and the Python API load.

MODEL_ID is a built-in id ({_BUILT_IN}) or an entry [models.entries.MODEL_ID] of config.toml.
"""
EXAMPLES = """\
examples:
  python -m export deepseek-ocr                             download, convert to 8 bits, publish in the cache
  python -m export deepseek-ocr --dtype f32                 exact: four times the size
  python -m export deepseek-ocr --dtype f16                 what CUDA needs
  python -m export deepseek-ocr --dtype q4 --vision-dtype q8    smallest and fastest on a CPU
  python -m export deepseek-ocr --source ~/my-fine-tune     a directory with config.json, tokenizer and safetensors
  python -m export deepseek-ocr --revision COMMIT           a pinned revision of the hub repository
  python -m export tiny-ocr --output /srv/models/tiny       publish somewhere else

HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured; when the Hugging Face hub cannot be reached,
ModelScope's copy of the same id is tried.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export", description=DESCRIPTION, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
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
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to publish (default: in the cache)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="config.toml to read instead of the user's")
    parser.add_argument("--force", action="store_true", help="export again even if a good export is there")
    parser.add_argument("--offline", action="store_true", help="use only what is on this machine")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json to use instead of the source's")
    parser.add_argument("--weights", type=Path, metavar="PATH", help="safetensors to use instead of the source's")
    parser.add_argument("--model-config", type=Path, metavar="FILE", help="config.json to use instead of the source's")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export one model. Returns 0, or 1 after an error that was explained on standard error."""
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except (ExportError, ModelError, OSError) as error:  # OSError: a full disk, a place that may not be written
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was published", file=sys.stderr)
        return 130
    return 0


def run(args: argparse.Namespace) -> None:
    """Resolve the entry, fetch the source, convert.

    Raises
    ------
    ExportError, ConfigError
        see ``export.pipeline.export_model``, ``export.hub.fetch`` and ``models.config.load_config``.
    """
    config = load_config(args.config)
    entry = _with_flags(config.entry(args.model_id), args)
    require_supported(entry)
    try:
        from . import hub, pipeline
    except ImportError as error:
        raise ExportError(
            f"exporting needs more packages ({error}); install them with: pip install 'ocr-onnx[export,cpu]'"
        ) from error
    dtype = args.dtype or config.dtype_of(entry, _device(config))
    if dtype not in pipeline.DTYPES:
        known = ", ".join(pipeline.DTYPES)
        raise ExportError(f"{entry.id} asks for {dtype}, which cannot be exported; --dtype takes one of {known}")
    source = hub.fetch(entry.source, entry.revision, offline=args.offline, report=report)
    job = pipeline.Job(
        model_id=entry.id,
        family=entry.family,
        source=source,
        dtype=dtype,
        target=(args.output or export_dir(entry, dtype)).expanduser().resolve(),
        vision_dtype=args.vision_dtype,
        block_size=args.block_size,
        report=args.report,
        force=args.force,
        config_file=entry.config,
        tokenizer_file=entry.tokenizer,
        weights=entry.weights,
    )
    pipeline.export_model(job, report)


def _device(config: Config) -> str:
    """What the server would run on, by config.toml."""
    if config.device != "auto":
        return config.device or "cpu"
    from .check import best_device  # imports ONNX Runtime: not before it is known to be installed

    return best_device()


def report(line: str) -> None:
    """Progress goes to standard error, line by line, so that a parent process can log it."""
    print(line, file=sys.stderr, flush=True)


def _with_flags(entry: ModelEntry, args: argparse.Namespace) -> ModelEntry:
    """The entry with what the command line replaces."""
    if args.source is not None:
        # Another source has other revisions: the entry's own pin does not apply to it.
        entry = replace(entry, source=args.source, revision=None)
    changes = {
        "revision": args.revision, "config": args.model_config, "tokenizer": args.tokenizer, "weights": args.weights,
    }  # fmt: skip
    return replace(entry, **{name: value for name, value in changes.items() if value is not None})
