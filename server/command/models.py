"""``ocr-onnx models``: the models that can be used, and their exports."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from models.arguments import add_config_flags, read_config
from models.asking import tasks_for
from models.catalog import SUPPORTED_FAMILIES
from models.layout.detectors import DETECTORS, KnownDetector
from models.model_errors import ConfigError
from models.registration import ModelEntry
from models.registry import default_task

from .command_errors import CommandFailed
from .exports import Export, find_exports, gigabytes, models_root

DESCRIPTION = "List the models of the catalogue and of config.toml, their tasks, and their exports in the cache."
EXAMPLES = """\
examples:
  ocr-onnx models
  ocr-onnx models --json | jq '.models[] | select(.exports != []) | .id'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", default=False, help="write one JSON object")
    add_config_flags(parser)


def run(given: Mapping[str, Any]) -> int:
    """Print the list.

    Raises
    ------
    CommandFailed
        when config.toml cannot be read.
    """
    try:
        config = read_config(given)
    except ConfigError as error:
        raise CommandFailed(str(error)) from error
    exports = find_exports(config.cache_dir)
    known = [config.entry(model_id) for model_id in config.model_ids()]
    listed = [_describe(entry, [export for export in exports if export.model_id == entry.id]) for entry in known]
    detectors = [
        _describe_detector(one, [export for export in exports if export.model_id == one.id])
        for one in DETECTORS.values()
    ]
    named = {*(entry.id for entry in known), *DETECTORS}
    unknown = [export for export in exports if export.model_id not in named]
    if given["json"]:
        document = {
            "cache": str(models_root(config.cache_dir)),
            "models": listed,
            "layout_detectors": detectors,
            "others": [_describe_export(one) for one in unknown],
        }
        print(json.dumps(document, indent=1, ensure_ascii=False))
        return 0
    for model in listed:
        _print(model)
    for detector in detectors:
        _print_detector(detector)
    for export in unknown:
        print(f"\n{export.model_id}  (config.toml does not name it any more)\n{_line(_describe_export(export))}")
    print(f"\nexports are in {models_root(config.cache_dir)}")
    return 0


def _describe(entry: ModelEntry, exports: list[Export]) -> dict[str, Any]:
    supported = entry.family in SUPPORTED_FAMILIES
    return {
        "id": entry.id,
        "family": entry.family,
        "supported": supported,
        "description": entry.description,
        "source": entry.source,
        "revision": entry.revision,
        "tasks": list(tasks_for(entry)),
        "default_task": default_task(entry) if supported else None,
        "layout": entry.layout,
        "exports": [_describe_export(export) for export in exports],
    }


def _describe_detector(detector: KnownDetector, exports: list[Export]) -> dict[str, Any]:
    return {
        "id": detector.id,
        "name": detector.name,
        "description": detector.description,
        "source": detector.source,
        "exports": [_describe_export(export) for export in exports],
    }


def _describe_export(export: Export) -> dict[str, Any]:
    manifest = export.manifest
    return {
        "dtype": export.dtype,
        "bytes": export.size,
        "folder": str(export.folder),
        "replaced_files": export.replaced,
        "problem": export.problem,
        "parameters": manifest.parameters if manifest else None,
        "source": manifest.source.name if manifest else None,
        "revision": manifest.source.revision if manifest else None,
        "created_by": manifest.created_by if manifest else None,
        "devices": manifest.providers if manifest else [],
    }


def _print(model: Mapping[str, Any]) -> None:
    state = "" if model["supported"] else "  (this version cannot use it yet)"
    print(f"\n{model['id']}{state}")
    if model["description"]:
        print(f"  {model['description']}")
    print(f"  from {model['source']}")
    if model["tasks"]:
        tasks = [f"{task} (default)" if task == model["default_task"] else task for task in model["tasks"]]
        print(f"  tasks: {', '.join(tasks)}")
    for export in model["exports"]:
        print(_line(export))
    if model["supported"] and not model["exports"]:
        print(f"  not exported; done on first use, or by hand: ocr-onnx export {model['id']}")


def _print_detector(detector: Mapping[str, Any]) -> None:
    print(f"\n{detector['id']}  (layout detector)\n  {detector['description']}\n  from {detector['source']}")
    for export in detector["exports"]:
        print(_line(export))
    if not detector["exports"]:
        print(f"  not exported; by hand: ocr-onnx export {detector['id']}")


def _line(export: Mapping[str, Any]) -> str:
    notes = ", replaced files" if export["replaced_files"] else ""
    line = f"  exported: {export['dtype']}{notes}, {gigabytes(export['bytes'])}, {export['folder']}"
    return f"{line}\n    unusable: {export['problem']}" if export["problem"] else line
