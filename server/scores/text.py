"""Edit distances in letters and words."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rapidfuzz.distance import Levenshtein


@dataclass(frozen=True)
class TextScore:
    """Sums over one or many texts.

    characters, words : of the truth. wrong_characters, wrong_words : the edit distances. longest : characters of the
    longer text of each pair.
    """

    characters: int = 0
    wrong_characters: int = 0
    words: int = 0
    wrong_words: int = 0
    longest: int = 0

    def __add__(self, other: Self) -> TextScore:
        return TextScore(
            self.characters + other.characters, self.wrong_characters + other.wrong_characters,
            self.words + other.words, self.wrong_words + other.wrong_words, self.longest + other.longest,
        )  # fmt: skip

    @property
    def character_error_rate(self) -> float | None:
        """Wrong characters by characters of the truth, which may be above 1; None for an empty truth."""
        return self.wrong_characters / self.characters if self.characters else None

    @property
    def word_error_rate(self) -> float | None:
        """Wrong words by words of the truth; None for an empty truth."""
        return self.wrong_words / self.words if self.words else None

    @property
    def edit_distance(self) -> float:
        """Wrong characters by characters of the longer text, 0 to 1; of two empty texts 0."""
        return self.wrong_characters / self.longest if self.longest else 0.0


def score_text(truth: str, read: str) -> TextScore:
    """Compare two texts, whatever their blanks, line breaks and composition of accents."""
    truth, read = plain(truth), plain(read)
    words, read_words = truth.split(), read.split()
    return TextScore(
        len(truth), Levenshtein.distance(truth, read), len(words), Levenshtein.distance(words, read_words),
        max(len(truth), len(read)),
    )  # fmt: skip


def plain(text: str) -> str:
    """The text with composed accents and single blanks between words."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def distance(first: Sequence[object] | str, second: Sequence[object] | str) -> float:
    """The edit distance by the length of the longer one, 0 to 1."""
    return Levenshtein.normalized_distance(first, second)
