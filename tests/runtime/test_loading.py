"""What a folder's tokenizer says of the graph's vocabulary."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from runtime.loading import rows_without_token


def test_rows_without_a_token_are_the_gaps_and_the_end_of_the_vocabulary() -> None:
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 3, "c": 4, "past the end": 9}, unk_token="a"))
    tokenizer.add_special_tokens([AddedToken("<end>")])
    added = tokenizer.token_to_id("<end>")
    known = {0, 3, 4, 9, added}
    for vocabulary in (1, 4, 8, 12):
        assert rows_without_token(tokenizer, vocabulary).tolist() == [
            row for row in range(vocabulary) if row not in known
        ]
