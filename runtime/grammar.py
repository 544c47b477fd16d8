"""Answers that follow a JSON schema: before each choice, tokens that would break the schema are forbidden.

llguidance computes which tokens may come next. The grammar is a logit filter like the others: on a GPU's candidates and
on whole rows.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from models.model_errors import InvalidInput

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Whitespace between JSON's tokens is bounded: an unsure model would go on with blanks for ever.
_BLANKS = r"[ \n\t]{1,40}"
_MOST_TRIES = 60  # parts of a schema to look at for the one that cannot be followed
# Keys of JSON Schema that hold further schemas: by name, in a list, one.
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


class Grammars:
    """Grammars over one model's vocabulary. The first one takes seconds, as the whole vocabulary is read."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, eos: Iterable[int]) -> None:
        """vocabulary : rows of the model's logits."""
        self._own, self._size, self._eos = tokenizer, vocabulary, sorted(eos)
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()

    def follow(self, schema: str) -> Grammar:
        """A grammar at its beginning, for one answer.

        Raises
        ------
        InvalidInput
            for a schema that is invalid, that no text satisfies, or that has an unknown keyword.
        """
        from llguidance import LLTokenizer  # megabytes, which few programs need

        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer(self._own.to_str(), n_vocab=self._size, eos_token=self._eos)
        matcher = self._compiled(schema)
        if isinstance(matcher, str):
            place = self._place(json.loads(schema), matcher)
            raise InvalidInput(f"the schema cannot be followed{place}: {matcher}")
        return Grammar(matcher, self._size)

    def _compiled(self, schema: str) -> LLMatcher | str:
        """The matcher of a schema, or why there is none."""
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _BLANKS})
        except ValueError as error:
            return str(error)
        assert self._tokenizer is not None, "a schema was compiled before the vocabulary was read"
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        return matcher.get_error() if matcher.is_error() else matcher

    def _place(self, schema: Any, reason: str) -> str:
        """`` at #/properties/a``, the innermost part that fails for the same reason; nothing for the whole schema."""
        place, tries, parts = "", _MOST_TRIES, _parts(schema)
        while tries and (found := next(parts, None)) is not None:
            tries -= 1
            name, part = found
            if self._compiled(json.dumps(part)) == reason:
                place, parts = f"{place}/{name}", _parts(part)
        return f" at #{place}" if place else ""


def _parts(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas directly in a schema, with their places."""
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            yield from ((f"{key}/{name}", part) for name, part in value.items())
        elif key in _LISTS and isinstance(value, list):
            yield from ((f"{key}/{number}", part) for number, part in enumerate(value))
        elif key in _SINGLE and isinstance(value, dict):
            yield key, value


class Grammar:
    """See ``logits.LogitFilter``. Observes the answer's tokens only, and none of the prompt's."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher, self._size = matcher, vocabulary
        self._allowed: np.ndarray | None = None  # [vocabulary] bool: what may come next

    def observe(self, token: int) -> None:
        """Take the answer's next token.

        Raises
        ------
        RuntimeError
            for a token that breaks the schema, and when the grammar becomes too complex.
        """
        self._allowed = None
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"the schema can be followed no further: {self._matcher.get_error()}")

    def apply(self, logits: np.ndarray) -> None:
        logits[~self._mask()] = -np.inf

    def apply_to(self, ids: np.ndarray, logits: np.ndarray) -> bool:
        logits[~self._mask()[ids]] = -np.inf
        return True

    def _mask(self) -> np.ndarray:
        if self._allowed is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._allowed = np.unpackbits(bits, count=self._size, bitorder="little").astype(np.bool_)
        return self._allowed
