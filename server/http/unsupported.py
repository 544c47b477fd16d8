"""Refuses fields of OpenAI's API (and vLLM's) that would change the answer and that this server does not support.

To ignore them silently would be worse. Fields that do not change the answer (``tools`` with ``auto``, ``metadata``,
``user``, ``store`` ...) are accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from runtime.confidence import MOST_ALTERNATIVES
from server.api_errors import BadRequest

CODE = "unsupported_parameter"


def _absent(value: Any) -> bool:
    return value is None or value == ""


def _none_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value is None or value in values


def _known_format(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and value.get("type") in ("text", "json_object", "json_schema"))


def _schema_only(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and value.keys() <= {"json"})


def _free_choice(value: Any) -> bool:
    """Whether the model may answer with text."""
    if not isinstance(value, dict):
        return value in (None, "auto", "none")
    allowed = value.get("allowed_tools", value)  # nested one level deeper in Chat Completions than in Responses
    return isinstance(allowed, dict) and (allowed.get("mode") or allowed.get("type")) in ("auto", "none")


def _few(value: Any) -> bool:
    """Whether so many alternatives can be told; other types are refused by the schema."""
    return not isinstance(value, int) or 0 <= value <= MOST_ALTERNATIVES


_TEXT_ONLY = "answers are text as it stands on the page; leave it out"
_FORMATS = "there are text, json_schema and json_object"
_SCHEMAS = "answers follow a JSON schema (response_format), and nothing else"
_NOTHING_KEPT = "nothing is kept between requests; send the conversation itself"
_BY_TEXT = "answers are not steered by it; leave it out"

# Field -> whether a value is harmless, and the message for other values.
_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "response_format": (_known_format, _FORMATS),
    "text.format": (_known_format, _FORMATS),
    "modalities": (_none_of([], ["text"]), _TEXT_ONLY),
    "tool_choice": (_free_choice, "the model calls no tools; send auto or none"),
    "function_call": (_free_choice, "the model calls no functions; send auto or none"),
    "previous_response_id": (_absent, _NOTHING_KEPT),
    "conversation": (_absent, _NOTHING_KEPT),
    "prompt": (_absent, "prompts are not stored here; send the text in the conversation"),
    "background": (_none_of(False), "use stream, or POST /v1/ocr/jobs for long documents"),
    "n": (_none_of(1), "this server gives one answer to a request"),
    "best_of": (_none_of(1), "this server gives one answer to a request"),
    "frequency_penalty": (_none_of(0), "use repetition_penalty or no_repeat_ngram_size, or leave it out"),
    "presence_penalty": (_none_of(0), "use repetition_penalty or no_repeat_ngram_size, or leave it out"),
    "logit_bias": (_none_of({}), _BY_TEXT),
    "min_p": (_none_of(0), "use top_p or top_k, or leave it out"),
    "min_tokens": (_none_of(0), _BY_TEXT),
    "ignore_eos": (_none_of(False), _BY_TEXT),
    "top_logprobs": (_few, f"at most {MOST_ALTERNATIVES} tokens are told in each place"),
    "structured_outputs": (_schema_only, _SCHEMAS),
    **{f"guided_{kind}": (_absent, _SCHEMAS) for kind in ("regex", "choice", "grammar")},
}


def refuse(body: Mapping[str, Any]) -> None:
    """Check a body.

    Raises
    ------
    BadRequest
        naming the first unsupported field, and what to do instead.
    """
    for name, (asks_nothing, remedy) in _FIELDS.items():
        value: Any = body
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not asks_nothing(value):
            raise BadRequest(f"{name}: {value!r:.80} is not supported; {remedy}", param=name, code=CODE)
