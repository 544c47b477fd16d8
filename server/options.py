"""Options of the whole server, from the command line and config.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from models.config import Config
from models.config_template import SERVER_KEYS
from runtime.library.options import ModelOptions

KEYS_VARIABLE = "OCR_ONNX_API_KEY"  # environment variable: one key, or several separated by commas


@dataclass(frozen=True, kw_only=True)
class ServerOptions(ModelOptions):
    """The options: flags over config.toml's [server] over the defaults of ``config_template.SERVER_KEYS``."""

    host: str = "0.0.0.0"
    port: int = 8000
    queue_timeout: float = 600.0
    max_connections_per_address: int = 256
    max_loaded_models: int = 1
    export_wait: float = 0.0
    wait_for_model: Literal["on", "off"] = "off"
    web: Literal["on", "off"] = "on"
    max_body_mb: int = 50
    max_images: int = 10
    max_image_mb: int = 20
    max_image_megapixels: int = 50
    max_tiles: int = 0
    max_new_tokens_limit: int = 0
    max_deadline: float = 0.0
    page_timeout: float = 20.0
    max_pages: int = 200
    max_files_mb: int = 200
    max_jobs: int = 16
    jobs_hours: float = 24.0
    jobs_mb: int = 500
    remote_images: Literal["off", "public", "any"] = "public"
    remote_timeout: float = 20.0
    system_messages: Literal["ignore", "prompt"] = "ignore"
    prompt_wrappers: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    shutdown_timeout: float = 30.0
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    inference_flags: Mapping[str, Any] = field(default_factory=dict)  # settings given as flags, by field name


def server_options(config: Mapping[str, Any], flags: Mapping[str, Any], **others: Any) -> ServerOptions:
    """Lay the flags over config.toml's [server] table. Lists (keys, origins) of the two are joined."""
    values: dict[str, Any] = {}
    for key in SERVER_KEYS:
        if isinstance(key.default, list):
            values[key.name] = tuple(dict.fromkeys([*config.get(key.name, []), *(flags.get(key.name) or [])]))
        elif flags.get(key.flag_name) is not None:
            values[key.name] = flags[key.flag_name]
        else:
            values[key.name] = config.get(key.name, key.default)
    return ServerOptions(**values, **others)


def given_options(config: Config, given: Mapping[str, Any], inference: Mapping[str, Any]) -> ServerOptions:
    """All options, from parsed flags over config.toml. inference : settings that are given as flags."""
    return server_options(
        config.server,
        given,
        model=given.get("model", config.active),
        device=given.get("device", config.device or "cpu"),
        dtype=given.get("dtype"),
        model_config=given.get("model_config"),
        tokenizer=given.get("tokenizer"),
        weights=given.get("weights"),
        adapter=given.get("adapter"),
        inference_flags=inference,
    )
