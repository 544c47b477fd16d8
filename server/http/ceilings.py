"""The operator's ceilings: the most that one request may ask for.

A request above a ceiling is refused with both numbers. The answer's length is an exception: clients send other models'
limits, so the answer is cut at the ceiling, with a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.precedence import BY_NAME
from models.settings import InferenceSettings
from server.api_errors import BadRequest
from server.options import ServerOptions

_NOTE = "the server gives at most {limit} tokens to an answer; {asked} were asked for"


@dataclass(frozen=True)
class Ceilings:
    """Ceilings; 0 is none."""

    max_new_tokens: int = 0
    deadline: float = 0.0  # seconds
    tiles: int = 0  # tiles of one image

    @classmethod
    def of(cls, options: ServerOptions) -> Ceilings:
        """The ceilings that the operator has set."""
        return cls(options.max_new_tokens_limit, options.max_deadline, options.max_tiles)

    def check(self, body: Mapping[str, Any]) -> None:
        """Refuse settings above a ceiling. ``body``: the request's settings by field name.

        Raises
        ------
        BadRequest
            naming both numbers.
        """
        ceilings = {"deadline_s": (self.deadline, "max_deadline"), "max_tiles": (self.tiles, "max_tiles_limit")}
        for name, (limit, key) in ceilings.items():
            asked = body.get(name)
            if limit and asked is not None and asked > limit:
                raise BadRequest(
                    f"{name} is {asked:g}; the most that this server allows is {limit:g} (--{key.replace('_', '-')})",
                    param=name,
                    code="above_the_limit",
                )

    @property
    def by_setting(self) -> Mapping[str, float]:
        """Name of a setting -> its ceiling, where there is one."""
        ceilings = {"max_new_tokens": self.max_new_tokens, "deadline_s": self.deadline, "max_tiles": self.tiles}
        return {name: limit for name, limit in ceilings.items() if limit}

    def hold(self, settings: InferenceSettings, own_tiles: int | None) -> InferenceSettings:
        """The settings, cut at the ceilings. ``own_tiles``: the model's default of tiles."""
        values: dict[str, Any] = {}
        if self.max_new_tokens:
            values["max_new_tokens"] = min(settings.max_new_tokens, self.max_new_tokens)
        if self.deadline:
            values["deadline_s"] = min(
                self.deadline, self.deadline if settings.deadline_s is None else settings.deadline_s
            )
        if self.tiles and "max_tiles" in BY_NAME:
            tiles = settings.value("max_tiles") or own_tiles
            if tiles is not None and tiles > self.tiles:
                values["max_tiles"] = self.tiles
        return settings.override(values)

    def note(self, body: Mapping[str, Any]) -> str | None:
        """The note for a client whose answer may be shorter than asked for."""
        asked = body.get("max_new_tokens")
        if not self.max_new_tokens or asked is None or asked <= self.max_new_tokens:
            return None
        return _NOTE.format(limit=self.max_new_tokens, asked=asked)
