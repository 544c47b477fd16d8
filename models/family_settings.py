"""Settings that a family adds to those of all models: how images are cut, what is attended to.

A family declares a frozen model; its names, types, ranges and help texts become flags, config.toml keys and request
fields (see ``models.precedence``). A request's values travel by name in ``InferenceSettings.family``, from which each
family takes its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from .model_errors import InvalidInput


class FamilySettings(BaseModel):
    """Base of a family's settings. Each field has a description; an optional one gives the default as an example.

    ``None`` means the exported model's own value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The family's own settings among a request's.

        Raises
        ------
        InvalidInput
            naming the setting, its value and the allowed ones.
        """
        try:
            return cls(**{name: value for name, value in given.items() if name in cls.model_fields})
        except ValidationError as error:
            problem = error.errors()[0]
            name = str(problem["loc"][0]) if problem["loc"] else "a setting"
            raise InvalidInput(f"{name} is {problem['input']}; it must be {cls.meaning(name)}") from None

    @classmethod
    def meaning(cls, name: str) -> str:
        """The values that a setting takes, in words: ``between 32 and 4096``."""
        bounds = {key: value for item in cls.model_fields[name].metadata for key, value in _bounds(item)}
        if "ge" in bounds and "le" in bounds:
            return f"between {bounds['ge']} and {bounds['le']}"
        if "ge" in bounds:
            return f"at least {bounds['ge']}"
        return "true or false" if cls.model_fields[name].annotation is bool else "a value of another type"


def _bounds(item: object) -> list[tuple[str, Any]]:
    return [(name, getattr(item, name)) for name in ("ge", "le") if hasattr(item, name)]


class NoSettings(FamilySettings):
    """For a family without settings of its own."""
