"""Checks that a tokenizer.json works as in the model's training.

Training programs load and save tokenizers, and some write a pre-tokenizer or decoder other than the one they read (most
often Metaspace in place of byte level). All ids stay valid, so nothing fails: but the model gets prompts unlike its
training's, and answers are full of ``Ġ``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers

from .export_errors import ExportError

# Samples of answers: scripts, signs, tables, code, formulas, spaces.
_SAMPLES = (
    "Hello, world! 1,234.56 (50 %)", "中文字符识别，日本語のテキスト、한국어", "émigré naïve Ärger ß µm №",
    "😀👩‍👩‍👧 ✓ → €", "| a | b |\n|---|---|\n| 1 | 2 |", "<table><tr><td>x</td></tr></table>",
    "def f(x):\n\treturn x**2  # twice\n", "\\frac{a}{b} \\leq \\sum_{i=1}^{n} x_i", "a  b   c\n\n\nd",
)  # fmt: skip
_BYTES = frozenset(pre_tokenizers.ByteLevel.alphabet())  # GPT-2's character for each byte


def check_tokenizer(tokenizer: Tokenizer, file: Path, prompts: Mapping[str, Sequence[int]], published: str) -> None:
    """Encode and decode samples, and the family's prompts.

    Parameters
    ----------
    tokenizer, file
        the tokenizer, and where it was read from.
    prompts
        texts with the published tokenizer's ids; compared where this tokenizer has the same tokens.
    published
        the model whose tokenizer.json is to be taken instead.

    Raises
    ------
    ExportError
        showing a text and its wrong decoding, with the likely cause and the file to take instead.
    """
    advice = (
        f"a training program has probably rewritten the file; take tokenizer.json of {published} (--tokenizer FILE), "
        "or of the model that was trained on"
    )
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    by_bytes = vocabulary.keys() >= _BYTES
    for text in _SAMPLES:
        back = tokenizer.decode(_ids(tokenizer, text), skip_special_tokens=False)
        if back != text if by_bytes else _loosely(back) != _loosely(text):
            raise ExportError(f"{file} does not give texts back: {text!r} becomes {back!r:.120}; {advice}")
    tokens = {index: token for token, index in vocabulary.items()}
    for text, expected in prompts.items():
        found = _ids(tokenizer, text)
        if found != list(expected) and _spelt(tokens, expected) == text:
            raise ExportError(f"{file} encodes {text!r} as {found}, the published one as {list(expected)}; {advice}")


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _loosely(text: str) -> str:
    """A text in normal form, as vocabularies of pieces may fold signs and spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _spelt(tokens: Mapping[int, str], ids: Sequence[int]) -> str | None:
    """The text of tokens in a byte-level vocabulary; None for tokens of another kind."""
    characters = {_byte_character(value): value for value in range(256)}
    try:
        return bytes(characters[character] for index in ids for character in tokens[index]).decode()
    except (KeyError, UnicodeDecodeError):
        return None


def _byte_character(value: int) -> str:
    """GPT-2's character for a byte: a printable byte's own, else one from 256 on, in order."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(value) if value in seen else chr(256 + sum(other not in seen for other in range(value)))
