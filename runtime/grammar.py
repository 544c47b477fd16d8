"""Answers that follow a JSON schema: before each choice, tokens that would break the schema are forbidden.

llguidance computes which tokens may come next. The grammar is a logit filter like the others: on a GPU's candidates and
on whole rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from models.model_errors import InvalidInput

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Whitespace between JSON's tokens is bounded: an unsure model would go on with blanks for ever.
_BLANKS = r"[ \n\t]{1,40}"


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
        from llguidance import LLMatcher, LLTokenizer  # megabytes, which few programs need

        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer(self._own.to_str(), n_vocab=self._size, eos_token=self._eos)
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _BLANKS})
        except ValueError as error:
            raise InvalidInput(f"the schema cannot be followed: {error}") from error
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InvalidInput(f"the schema cannot be followed: {matcher.get_error()}")
        return Grammar(matcher, self._size)


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
