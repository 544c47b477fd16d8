"""What the command line and config.toml decide for the server as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from models.config_template import SERVER_KEYS


@dataclass(frozen=True)
class ServerOptions:
    """Flags over config.toml's [server] over the defaults of ``config_template.SERVER_KEYS``."""

    host: str = "0.0.0.0"
    port: int = 8000
    slots: int = 0
    threads: int = 0
    vision_cache_mb: float = 64.0
    max_queue: int = 64
    queue_timeout: float = 600.0
    max_connections_per_address: int = 256
    max_loaded_models: int = 1
    export_on_demand: Literal["on", "off"] = "on"
    export_wait: float = 0.0
    switch_models: Literal["on", "off"] = "on"
    wait_for_model: Literal["on", "off"] = "off"
    web: Literal["on", "off"] = "on"
    max_body_mb: int = 50
    max_images: int = 10
    max_image_mb: int = 20
    max_image_megapixels: int = 50
    max_tiles: int = 0
    max_new_tokens_limit: int = 0
    max_context: int = 0
    max_deadline: float = 0.0
    page_timeout: float = 20.0
    max_pages: int = 200
    max_files_mb: int = 200
    max_jobs: int = 16
    jobs_hours: float = 24.0
    jobs_mb: int = 500
    warm_up: Literal["auto", "none", "quick", "full"] = "auto"
    stale_exports: Literal["say", "refuse", "export"] = "say"
    remote_images: Literal["off", "public", "any"] = "public"
    remote_timeout: float = 20.0
    system_messages: Literal["ignore", "prompt"] = "ignore"
    prompt_wrappers: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    shutdown_timeout: float = 30.0
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # From the command line and the other tables.
    model: str = "deepseek-ocr"  # loaded at the start
    device: str = "cpu"
    engines: int = 1  # of a model: one for each card of ``cuda:all``
    dtype: str | None = None
    model_config: Path | None = None
    tokenizer: Path | None = None
    weights: Path | None = None
    adapter: Path | None = None
    inference_flags: Mapping[str, Any] = field(default_factory=dict)  # settings given as flags, by field name

    @property
    def capacity(self) -> int:
        """Generation requests in the house at once, running and waiting."""
        return (self.slots or 4) * self.engines + self.max_queue


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
