"""The keys of config.toml's [server] table, and the commented file that is written where none exists."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .precedence import SETTINGS
from .settings import LEAST_CONTEXT

DEFAULT_ACTIVE = "deepseek-ocr"
ON_OFF = ("on", "off")


@dataclass(frozen=True)
class ServerKey:
    """One key of [server]; the command line has a flag of the same name."""

    name: str
    default: Any
    accepts: Callable[[Any], bool]
    expected: str
    help: str
    flag: str | None = None  # the flag's name where it differs from the key's, which is that of a request's setting

    @property
    def flag_name(self) -> str:
        """The flag's name among parsed flags."""
        return self.flag or self.name

    @property
    def is_switch(self) -> bool:
        """Whether the key takes on or off."""
        return self.default in ON_OFF


def _is_int(low: int, high: float = float("inf")) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _is_tags(value: Any) -> bool:
    return _is_strings(value) and all(re.fullmatch(r"[\w.:-]+", item) for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _one_of(*choices: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in choices


_COUNT = "an integer of at least 1"
_COUNT_OR_NONE = "an integer, 0 for no limit"
_SECONDS = "a number of seconds, 0 or more"

SERVER_KEYS: tuple[ServerKey, ...] = (
    ServerKey(
        "host", "0.0.0.0", lambda v: isinstance(v, str) and bool(v), "a host name or address", "address to listen on"
    ),
    ServerKey(
        "port", 8000, _is_int(0, 65535), "a port number from 0 to 65535", "port to listen on; 0 takes a free one"
    ),
    ServerKey(
        "slots", 0, _is_int(0), "an integer, 0 for automatic", "requests decoded at once; 0: by device and memory"
    ),
    ServerKey("threads", 0, _is_int(0), "an integer, 0 for automatic", "computing threads of the CPU; 0: all cores"),
    ServerKey(
        "vision_cache_mb",
        64.0,
        _is_number,
        "a number of megabytes, 0 for none",
        "image features kept for images that are asked about again, in MB; 0 keeps none",
    ),
    ServerKey("max_queue", 64, _is_int(1), _COUNT, "requests that may wait; more get 503 and Retry-After"),
    ServerKey("queue_timeout", 600.0, _is_number, _SECONDS, "longest wait for a model to be loaded, in seconds"),
    ServerKey(
        "max_connections_per_address",
        256,
        _is_int(0),
        "an integer, 0 for no limit",
        "connections from one address; 0: no limit, for a server behind a proxy that opens many",
    ),
    ServerKey("max_loaded_models", 1, _is_int(1), _COUNT, "models kept in memory"),
    ServerKey(
        "export_on_demand",
        "on",
        _one_of(*ON_OFF),
        "on or off",
        "export a configured model when it is asked for: on or off",
    ),
    ServerKey(
        "export_wait",
        0.0,
        _is_number,
        _SECONDS,
        "seconds that a request waits for its model's export before it gets 503, Retry-After and the progress",
    ),
    ServerKey("switch_models", "on", _one_of(*ON_OFF), "on or off", "let requests change the loaded model: on or off"),
    ServerKey(
        "wait_for_model",
        "off",
        _one_of(*ON_OFF),
        "on or off",
        "keep running when the model to start with cannot be loaded, instead of ending with status 1: on or off",
    ),
    ServerKey("web", "on", _one_of(*ON_OFF), "on or off", "serve a page for people at / (extra web): on or off"),
    ServerKey("max_body_mb", 50, _is_int(1), _COUNT, "largest request body in MiB"),
    ServerKey("max_images", 10, _is_int(1), _COUNT, "images in one request"),
    ServerKey("max_image_mb", 20, _is_int(1), _COUNT, "largest image or document file in MiB"),
    ServerKey("max_image_megapixels", 50, _is_int(1), _COUNT, "largest image in millions of pixels"),
    ServerKey(
        "max_tiles",
        0,
        _is_int(0),
        _COUNT_OR_NONE,
        "most tiles of one image, whatever a request asks for; 0: no limit",
        flag="max_tiles_limit",
    ),
    ServerKey(
        "max_new_tokens_limit",
        0,
        _is_int(0),
        _COUNT_OR_NONE,
        "longest answer in tokens, whatever a request asks for: more is cut to it, with a note; 0: no limit",
    ),
    ServerKey(
        "max_context",
        0,
        lambda v: v == 0 or _is_int(LEAST_CONTEXT)(v),
        f"an integer of at least {LEAST_CONTEXT}, 0 for no limit",
        "tokens of prompt, images and answer together; 0: as many as the model takes",
    ),
    ServerKey(
        "max_deadline",
        0.0,
        _is_number,
        "a number of seconds, 0 for no limit",
        "longest deadline in seconds, also of requests that set none; 0: no limit",
    ),
    ServerKey(
        "page_timeout",
        20.0,
        lambda v: _is_number(v) and v > 0,
        "a number of seconds, above 0",
        "processor seconds after which an image or a page of a document is given up while it is decoded or drawn",
    ),
    ServerKey("max_pages", 200, _is_int(1), _COUNT, "pages of one document that are read for one request"),
    ServerKey("max_files_mb", 200, _is_int(1), _COUNT, "files of /v1/files kept in memory, for an hour, in MiB in all"),
    ServerKey("max_jobs", 16, _is_int(1), _COUNT, "jobs of /v1/ocr/jobs that wait or run"),
    ServerKey(
        "jobs_hours", 24.0, _is_number, "a number of hours, 0 or more", "hours that ended jobs are kept in the cache"
    ),
    ServerKey("jobs_mb", 500, _is_int(1), _COUNT, "size of all ended jobs in MiB; the oldest go first"),
    ServerKey(
        "warm_up",
        "auto",
        _one_of("auto", "none", "quick", "full"),
        "auto, none, quick or full",
        "what is slow the first time is run before /ready; auto is quick on CUDA and none elsewhere",
    ),
    ServerKey(
        "stale_exports",
        "say",
        _one_of("say", "refuse", "export"),
        "say, refuse or export",
        "an export whose source has changed since: say so, refuse it, or export it anew",
    ),
    ServerKey(
        "remote_images",
        "public",
        _one_of("off", "public", "any"),
        "off, public or any",
        "fetch http(s) images: off, from public addresses, or from any address",
    ),
    ServerKey("remote_timeout", 20.0, _is_number, _SECONDS, "seconds that fetching a request's images may take"),
    ServerKey(
        "system_messages",
        "ignore",
        _one_of("ignore", "prompt"),
        "ignore or prompt",
        "ignore system and developer messages, or put them in front of the prompt: ignore or prompt",
    ),
    ServerKey(
        "prompt_wrappers",
        [],
        _is_tags,
        "a list of names of tags, without < and >",
        "tags that clients wrap around what was typed, dropped with what is in them, as Open WebUI's are anyway",
    ),
    ServerKey("api_keys", [], _is_strings, "a list of strings", "clients must send one of these as a bearer token"),
    ServerKey("cors_origins", [], _is_strings, "a list of origins", "browser origins that may call the API"),
    ServerKey("shutdown_timeout", 30.0, _is_number, _SECONDS, "seconds that running requests get at shutdown"),
    ServerKey("log_format", "text", _one_of("text", "json"), "text or json", "form of the log lines: text or json"),
    ServerKey(
        "log_level",
        "info",
        _one_of("debug", "info", "warning", "error"),
        "debug, info, warning or error",
        "what is logged; debug has a line for every request",
    ),
)

_HEAD = """\
# Configuration of ocr-onnx (and of deepseek-ocr.rs: the file is the same).
# Every line below shows a default; remove the # to change it.
# A request's own fields win over command line flags, those over a model entry's defaults, those over this file.

[models]
# active = {active}
# cache = "/srv/ocr-onnx"         # downloads and exports; default: the system's place; OCR_ONNX_CACHE wins over both

# A model of your own, exported from a directory or a hub repository:
# [models.entries.my-model]
# kind = "deepseek-ocr"
# source = "./my-checkpoint"
# revision = "main"
# dtype = "q8"
# task = "ocr"                    # of an image without a text
# tasks = ["ocr", "free"]         # all that it was trained on: other prompts are then read as the default task
# layout = "v3"                   # detector for reading whole pages block by block: v2, v3, its folder, or none
# page = {{ margin = 4, hidden = ["number"] }}   # rules of that, see tools/docs/layout.md
# defaults = {{ max_new_tokens = 2048 }}

[inference]
# device = "cpu"                  # cpu, cuda, coreml (or metal), auto
# dtype = "q8"                    # f32, f16, bf16, q8, q4; default: by device and size (f16 on GPUs, q8 on a CPU)
"""


def render() -> str:
    """The file's text: valid TOML, also after removing any ``# `` in front of a key."""
    lines = [_HEAD.format(active=_toml(DEFAULT_ACTIVE))]
    for setting in SETTINGS:
        if setting.default is None:  # TOML has no null
            text = f"{setting.help}; default: {setting.default_text or 'none'}"
            lines.append(_line(setting.name, setting.example, text))
        else:
            lines.append(_line(setting.name, setting.default, setting.help))
    lines.append("\n[server]\n")
    lines += [_line(key.name, key.default, key.help) for key in SERVER_KEYS]
    return "".join(lines)


def _line(key: str, value: Any, comment: str) -> str:
    return f"{f'# {key} = {_toml(value)}':<34}# {comment}\n"


def _toml(value: Any) -> str:
    # JSON and TOML write these values alike: strings, numbers, booleans, flat lists.
    return json.dumps(list(value) if isinstance(value, tuple) else value)
