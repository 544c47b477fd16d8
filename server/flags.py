"""Command-line flags from the tables of settings and server keys, for all programs.

A flag that is not given is absent from the namespace, so that config.toml's value counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models import precedence
from models.arguments import add_config_flags
from models.catalog import DTYPES
from models.config import DEVICES, is_device
from models.config_template import DEFAULT_ACTIVE, SERVER_KEYS, ServerKey
from models.nearest import did_you_mean
from models.precedence import Setting
from models.settings import InferenceSettings


def add_model_flags(group: argparse._ArgumentGroup, model: str) -> None:
    """Add flags of the model, its files and its device. ``model``: help text of --model."""
    group.add_argument("--model", metavar="ID", help=f"{model} (default: {DEFAULT_ACTIVE}, or as config.toml says)")
    add_config_flags(group)
    group.add_argument("--model-config", type=Path, metavar="PATH", help="config.json instead of the model's own")
    group.add_argument("--tokenizer", type=Path, metavar="PATH", help="tokenizer.json instead of the model's own")
    group.add_argument(
        "--weights", type=Path, metavar="PATH", help="safetensors file or folder, instead of the model's"
    )
    group.add_argument("--adapter", type=Path, metavar="DIR", help="LoRA adapter to merge when the model is exported")
    add_device_flag(group)
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="type of the weights (default: f16 on cuda and coreml; on the CPU q8, or f32 for models under 100 M "
        "parameters)",
    )


def add_device_flag(group: argparse._ArgumentGroup) -> None:
    """Add --device."""
    group.add_argument(
        "--device",
        type=_device,
        metavar="{" + ",".join((*DEVICES, "cuda:N", "cuda:all")) + "}",
        help="where to compute; metal is coreml, cuda:1 the second of several GPUs, cuda:all every one (default: cpu)",
    )


def _device(text: str) -> str:
    if not is_device(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(DEVICES)}{did_you_mean(text, DEVICES)}")
    return text


def add_setting_flags(group: argparse._ArgumentGroup, defaults: Mapping[str, Any] | None = None) -> None:
    """Add a flag for each inference setting. ``defaults``: the program's own default values, by name."""
    for setting in precedence.SETTINGS:
        if setting.flag:
            _add_setting(group, setting, (defaults or {}).get(setting.name))


def add_server_flags(group: argparse._ArgumentGroup, *names: str) -> None:
    """Add a flag for each key of config.toml's [server], or for the named keys."""
    for key in SERVER_KEYS:
        if not names or key.name in names:
            _add_key(group, key)


def given_settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The inference settings among parsed flags, checked.

    Raises
    ------
    InvalidInput
        for a value out of its range.
    """
    values = {setting.name: flags[setting.name] for setting in precedence.SETTINGS if setting.name in flags}
    InferenceSettings().override(values)
    return values


def _add_setting(group: argparse._ArgumentGroup, setting: Setting, default: Any) -> None:
    builtin = setting.default if default is None else default
    shown = setting.default_text if builtin is None else str(builtin).lower()
    text = f"{setting.help} (default: {shown})"
    if setting.kind == "boolean":
        group.add_argument(
            setting.flag or "", dest=setting.name, type=_boolean, nargs="?", const=True, metavar="true|false", help=text
        )
        return
    convert = {"integer": _integer_or_none(setting), "word": str}.get(setting.kind, float)
    metavar = {"integer": "N", "word": "WORD"}.get(setting.kind, "X")
    group.add_argument(setting.flag or "", dest=setting.name, type=convert, metavar=metavar, help=text)


def _add_key(group: argparse._ArgumentGroup, key: ServerKey) -> None:
    is_list = isinstance(key.default, list)

    def convert(text: str) -> Any:
        try:
            value = text if is_list else type(key.default)(text)
        except ValueError:
            value = None
        if not key.accepts([value] if is_list else value):
            raise argparse.ArgumentTypeError(f"expected {key.expected}, found {text!r}")
        return value

    if is_list:
        flag = "--" + key.name.removesuffix("s").replace("_", "-")
        text = f"{key.help}; may be repeated"
        group.add_argument(flag, dest=key.name, action="append", type=convert, metavar="TEXT", help=text)
        return
    flag = "--" + key.flag_name.replace("_", "-")
    if key.is_switch:  # --wait-for-model alone means on
        text = f"{key.help} (default: {key.default})"
        group.add_argument(flag, type=convert, nargs="?", const="on", metavar="on|off", help=text)
        if key.default == "on":
            group.add_argument(f"--no-{flag[2:]}", dest=key.name, action="store_const", const="off", help=f"{flag} off")
        return
    group.add_argument(flag, type=convert, metavar=key.flag_name.upper(), help=f"{key.help} (default: {key.default})")


def _boolean(text: str) -> bool:
    match text.lower():
        case "true" | "1" | "yes" | "on":
            return True
        case "false" | "0" | "no" | "off":
            return False
    raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")


def _integer_or_none(setting: Setting) -> Any:
    def convert(text: str) -> int | None:
        if text.lower() == "none" and setting.default_text is not None:
            return None
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected an integer, found {text!r}") from None
        return None if value in setting.off else value

    return convert
