"""Options of one request, for cutting images and decoding text; every layer passes them on.

The server builds them from defaults, config.toml, flags and the request body; the Python API from keyword arguments.
The runtime reads the fields, a family its own settings among ``family`` (see ``models.family_settings``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, get_args

from .families import FAMILIES
from .family_settings import FamilySettings
from .model_errors import InvalidInput
from .pixels import Transparency
from .turned import Orient

# Bounded: stop strings are looked for after every token, on the thread that decodes all requests.
MAX_STOPS = 16
MAX_STOP_LENGTH = 200  # characters
LEAST_CONTEXT = 64  # least tokens for a page with its answer


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """Options of one request. ``None`` means the model's own value (its manifest), or "off" where so noted."""

    # Background of transparent pictures; "drop" takes the stored colours of transparent pixels.
    transparency: Transparency = "white"

    # "auto": turn pages whose text lies on its side or head. The code that opens or draws pages does so;
    # ``TextModel.submit`` takes images unturned.
    orient: Orient = "off"

    # Length of the answer.
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()  # generation ends before the first of these strings
    deadline_s: float | None = None  # seconds from submission after which the partial text is returned; None: never

    # Sampling: greedy unless do_sample and temperature > 0.
    do_sample: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None  # None: all tokens
    seed: int | None = None  # None: a fresh one for each request

    # Repetition.
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 20  # 0 switches the filter off
    no_repeat_ngram_window: int | None = None  # tokens to look back; None: prompt and answer
    no_repeat_ngram_whitelist: tuple[int, ...] = ()  # token ids that the filter never forbids
    stop_on_loop: bool = True  # end an answer whose tail repeats itself

    # Families' own settings by name; a model takes those of its family.
    family: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises
        ------
        InvalidInput
            naming the setting, its value and the allowed range.
        """
        object.__setattr__(self, "family", _checked(self.family))
        if self.transparency not in get_args(Transparency):
            allowed = " or ".join(get_args(Transparency))
            raise InvalidInput(f"transparency is {self.transparency!r:.40}; it must be {allowed}")
        if self.orient not in get_args(Orient):
            raise InvalidInput(f"orient is {self.orient!r:.40}; it must be {' or '.join(get_args(Orient))}")
        for name, (low, high, meaning) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidInput(f"{name} is {value}; it must be {meaning}")
        if any(not text for text in self.stop):
            raise InvalidInput("stop holds an empty string; leave it out or name the text to stop at")
        if len(self.stop) > MAX_STOPS or any(len(text) > MAX_STOP_LENGTH for text in self.stop):
            raise InvalidInput(
                f"stop has {len(self.stop)} strings of up to {max(map(len, self.stop))} characters; it may have "
                f"{MAX_STOPS} of up to {MAX_STOP_LENGTH}"
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random: needs both ``do_sample`` and a temperature above 0."""
        return self.do_sample and self.temperature > 0

    def value(self, name: str) -> Any:
        """The value of a name of ``SETTING_NAMES``; None for a family's setting that is not set."""
        return getattr(self, name) if name in _FIELDS else self.family.get(name)

    def override(self, values: Mapping[str, Any]) -> Self:
        """A copy with the named values replaced.

        Raises
        ------
        InvalidInput
            for an unknown name, or a value out of range.
        """
        unknown = sorted(values.keys() - SETTING_NAMES)
        if unknown:
            raise InvalidInput(f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(SETTING_NAMES))}")
        own = {name: value for name, value in values.items() if name in _FIELDS}
        others = {name: value for name, value in values.items() if name not in _FIELDS}
        return replace(self, **own, family={**self.family, **others})


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of families' settings without those that are None. Raises InvalidInput for a name of no family."""
    for name, value in values.items():
        refusals = []
        for settings in FAMILY_SETTINGS.get(name, ()):
            try:
                settings.of({name: value})
            except InvalidInput as error:
                refusals.append(error)
        if len(refusals) == len(FAMILY_SETTINGS.get(name, ())):
            raise refusals[0] if refusals else InvalidInput(f"unknown setting {name!r}")
    return {name: value for name, value in values.items() if value is not None}


# Name of a family's setting -> the settings of the families that have it.
FAMILY_SETTINGS: dict[str, list[type[FamilySettings]]] = {}
for _settings in dict.fromkeys(family.rules.settings for family in FAMILIES.values() if family.rules):
    for _name in _settings.model_fields:
        FAMILY_SETTINGS.setdefault(_name, []).append(_settings)

_FIELDS = frozenset(one.name for one in fields(InferenceSettings)) - {"family"}
SETTING_NAMES = _FIELDS | FAMILY_SETTINGS.keys()

_RANGES: dict[str, tuple[float, float, str]] = {
    "max_new_tokens": (1, 10_000_000, "at least 1, and at most 10,000,000"),
    "deadline_s": (0, 31_536_000, "0 seconds or more, and at most a year (31,536,000)"),
    "temperature": (0, 100, "between 0 and 100"),
    "top_p": (0, 1, "between 0 and 1"),
    "top_k": (1, 10_000_000, "at least 1 and at most 10,000,000, or left out for all tokens"),
    "seed": (0, 2**64 - 1, "between 0 and 2**64 - 1"),
    "repetition_penalty": (1e-3, 1e3, "between 0.001 and 1000"),
    "no_repeat_ngram_size": (0, 256, "between 0 (off) and 256"),
    "no_repeat_ngram_window": (1, 10_000_000, "at least 1 and at most 10,000,000, or left out for the whole sequence"),
}
