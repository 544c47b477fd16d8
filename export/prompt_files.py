"""Rules of prompts from a checkpoint's files: chat template, named tokens, and control tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from models.chat_template import PromptRules, compiled

from .config_values import optional_json
from .export_errors import ExportError


def prompt_rules(
    folder: Path, image: int, token_id: Mapping[str, int], special: Sequence[str], *, template: str | None = None
) -> PromptRules:
    """The chat template, the names that it may use, and the control tokens that prompts must not hold.

    image : id of the placeholder. token_id : the tokenizer's vocabulary; special : the tokenizer's special tokens.
    template : in place of the folder's own.

    Raises
    ------
    ExportError
        when the folder has no chat template.
    ManifestError
        when the template is invalid.
    """
    template = template or chat_template(folder)
    compiled(template)
    placeholder = next(token for token, number in token_id.items() if number == image)
    return PromptRules(
        chat_template=template, placeholder=placeholder, special_tokens=special_tokens(folder),
        control_tokens=control_tokens(special),
    )  # fmt: skip


def control_tokens(special: Iterable[str]) -> tuple[str, ...]:
    """The control tokens among a tokenizer's special tokens, which may include digits or line breaks."""
    return tuple(sorted({token for token in special if len(token) > 2 and (token[0], token[-1]) == ("<", ">")}))


def has_chat_template(folder: Path) -> bool:
    """Whether any file of the checkpoint has a chat template."""
    return _found_template(folder) is not None


def chat_template(folder: Path) -> str:
    """The checkpoint's chat template, from any of its files.

    Raises
    ------
    ExportError
        when no file has one.
    """
    found = _found_template(folder)
    if found is None:
        raise ExportError(f"{folder} has no chat template; chat_template.jinja is part of the published checkpoint")
    return found


def _found_template(folder: Path) -> str | None:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = optional_json(folder / name).get("chat_template")
        if isinstance(template, list):  # several, by name
            named = [one for one in template if isinstance(one, dict) and one.get("name") == "default"]
            template = named[0].get("template") if named else None
        if isinstance(template, str):
            return template
    return None


def special_tokens(folder: Path) -> dict[str, str]:
    """Texts of the named tokens (cls_token, eos_token, ...), which templates may use."""
    found = {**optional_json(folder / "tokenizer_config.json"), **optional_json(folder / "special_tokens_map.json")}
    texts = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in found.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}
