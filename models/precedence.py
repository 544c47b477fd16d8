"""One table of inference settings: which source may set which, under which name, and which source wins.

request body > flags > the model entry's defaults > config.toml > the family's defaults > built-in. The configuration
checks files by these types and names; the command line makes flags from the table, and the request schemas make fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from .model_errors import InvalidInput, InvalidSetting
from .settings import FAMILY_SETTINGS, InferenceSettings

Kind = Literal["integer", "number", "boolean", "strings", "integers", "word"]


@dataclass(frozen=True)
class Setting:
    """One inference setting: a field of InferenceSettings, or of some families' own settings."""

    name: str  # name of the field, and in config.toml
    kind: Kind
    help: str
    flag: str | None = None  # flag on the command line; None: no flag
    body: tuple[str, ...] = ()  # spellings in a request; () means the field's own name
    nested: str | None = None  # one more spelling, nested in another field: outer.inner
    off: tuple[Any, ...] = ()  # other programs' spellings of None ("no limit")
    unset: tuple[Any, ...] = ()  # other programs' spellings of an omitted value
    default_text: str | None = None  # a None default in help texts
    default: Any = None  # built-in
    example: Any = None  # example of a value, where the default is None

    @property
    def spellings(self) -> tuple[str, ...]:
        """Names that a request body may use."""
        return self.body or (self.name,)


def _of_family(name: str) -> Setting:
    """A setting of some families, described by the first of them."""
    declared = FAMILY_SETTINGS[name][0].model_fields[name]
    kinds: dict[Any, Kind] = {int: "integer", float: "number", bool: "boolean"}
    types = [one for one in get_args(declared.annotation) or (declared.annotation,) if one in kinds]
    if not types or not declared.description:
        raise AssertionError(f"{name} needs a description, and a type out of {list(kinds)}")
    example = (declared.examples or [None])[0]
    return Setting(
        name, kinds[types[0]], declared.description, f"--{name.replace('_', '-')}",
        default_text=None if declared.default is not None else f"the model's own, such as {example}",
        default=declared.default, example=example,
    )  # fmt: skip


_SHARED: tuple[Setting, ...] = (
    Setting(
        "transparency",
        "word",
        "what is laid under pictures with transparency: white, black, or drop for the colours that are stored there",
        "--transparency",
    ),
    Setting(
        "orient",
        "word",
        "auto turns pages upright whose text lies on its side or head, where that is sure; off leaves them",
        "--orient",
        nested="ocr.orient",
    ),
    Setting(
        "max_new_tokens",
        "integer",
        "longest answer in tokens",
        "--max-new-tokens",
        body=("max_completion_tokens", "max_output_tokens", "max_tokens", "max_new_tokens"),
        unset=(-1,),
    ),
    Setting("stop", "strings", "the answer ends before the first of these strings"),
    Setting(
        "deadline_s",
        "number",
        "seconds after which the text so far is returned; 0 in a request ends it at once",
        "--deadline",
        default_text="none",
        example=300.0,
    ),
    Setting("do_sample", "boolean", "draw tokens at random; needs a temperature above 0 too", "--do-sample"),
    Setting("temperature", "number", "sampling temperature; 0 is greedy", "--temperature"),
    Setting("top_p", "number", "draw from the most likely tokens that reach this probability", "--top-p"),
    Setting(
        "top_k",
        "integer",
        "draw from this many of the most likely tokens; 0 for all",
        "--top-k",
        off=(0, -1),
        default_text="none",
        example=50,
    ),
    Setting(
        "seed", "integer", "seed of the sampling", "--seed", default_text="a fresh one for each request", example=0
    ),
    Setting("repetition_penalty", "number", "penalty on tokens seen before; 1 is off", "--repetition-penalty"),
    Setting(
        "no_repeat_ngram_size",
        "integer",
        "no sequence of this many tokens comes twice; 0 is off",
        "--no-repeat-ngram-size",
        nested="vllm_xargs.ngram_size",
    ),
    Setting(
        "no_repeat_ngram_window",
        "integer",
        "look back this many tokens only; 0 for all",
        "--no-repeat-ngram-window",
        nested="vllm_xargs.window_size",
        off=(0,),
        default_text="the whole sequence",
        example=90,
    ),
    Setting(
        "no_repeat_ngram_whitelist",
        "integers",
        "token ids that the n-gram rule never forbids",
        nested="vllm_xargs.whitelist_token_ids",
    ),
    Setting("stop_on_loop", "boolean", "end an answer whose tail repeats itself", "--stop-on-loop"),
)

_BUILT_IN = InferenceSettings()
SETTINGS = (
    *(_of_family(name) for name in FAMILY_SETTINGS),
    *(replace(setting, default=_BUILT_IN.value(setting.name)) for setting in _SHARED),
)
BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}

_EXPECTED: dict[Kind, str] = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "strings": "a list of strings",
    "integers": "a list of integers",
    "word": "a word",
}


def check_value(setting: Setting, value: Any) -> Any:
    """Return ``value`` in the type of the setting's field, with the "off" spellings turned into None.

    Raises
    ------
    InvalidInput
        for another type; the message says what was expected, without the setting's name.
    """
    integer = isinstance(value, int) and not isinstance(value, bool)
    converted: Any = None
    types = {"boolean": bool, "word": str}
    if (setting.kind == "integer" and integer) or isinstance(value, types.get(setting.kind, ())):
        converted = value
    elif setting.kind == "number" and (integer or isinstance(value, float)):
        converted = _as_float(value)
    elif setting.kind == "strings" and isinstance(value, str):
        converted = (value,)
    elif (setting.kind == "strings" and isinstance(value, list) and all(isinstance(item, str) for item in value)) or (
        setting.kind == "integers"
        and isinstance(value, list)
        and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    ):
        converted = tuple(value)
    else:
        raise InvalidInput(f"expected {_EXPECTED[setting.kind]}, found {value!r:.80}")
    return None if converted in setting.off else converted


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def from_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a request body sets. An absent or null field sets nothing.

    Raises
    ------
    InvalidSetting
        for a wrong type, a value out of its range, or two spellings of one setting that disagree.
    """
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        spellings = (*setting.spellings, *((setting.nested,) if setting.nested else ()))
        given = {name: body[name] for name in spellings if body.get(name) is not None}
        for name, value in given.items():
            if value in setting.unset:
                continue
            try:
                checked = check_value(setting, value)
                InferenceSettings().override({setting.name: checked})
            except InvalidInput as error:
                words = str(error)
                told = words.removeprefix(setting.name) if words.startswith(f"{setting.name} ") else f": {words}"
                raise InvalidSetting(f"{name}{told}", name) from None
            if setting.name in values and values[setting.name] != checked:
                words = f"{' and '.join(given)} name the same limit but disagree; send one of them"
                raise InvalidSetting(words, name)
            values[setting.name] = checked
    return values


def resolve(
    config: Mapping[str, Any], entry: Mapping[str, Any], flags: Mapping[str, Any], body: Mapping[str, Any]
) -> InferenceSettings:
    """Lay the four sources, the strongest last, over the built-in defaults. All are keyed by field name.

    Raises
    ------
    InvalidInput
        for a value outside its range.
    """
    settings = InferenceSettings()
    for source in (config, entry, flags, body):
        settings = settings.override(source)
    return settings
