"""What DeepSeek-OCR decodes with where nobody says otherwise: the authors' serving recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from models import precedence
from models.deepseek_ocr.family import DEFAULTS
from models.settings import InferenceSettings
from runtime.logits import NoRepeatNgram

PAYMENTS = (
    ("DIRECT DEBIT ENERGY SUPPLIER PLC REF 0012345678", "52.10"),
    ("CARD PAYMENT GROCERY STORE 0042 HIGH STREET", "7.35"),
    ("STANDING ORDER RENT FLAT 7B NORTH ROAD", "940.00"),
    ("TRAIN OPERATOR LTD MONTHLY SEASON TICKET", "118.60"),
)


def forbidden(tokens: list[int], settings: InferenceSettings) -> int:
    """How many of a page's own tokens the guard would not let the model write."""
    guard = NoRepeatNgram(
        settings.no_repeat_ngram_size, settings.no_repeat_ngram_window, settings.no_repeat_ngram_whitelist
    )
    count = 0
    for token in tokens:
        logits = np.zeros(129280, np.float32)
        guard.apply(logits)
        count += logits[token] == -np.inf
        guard.observe(token)
    return count


def test_the_guard_lets_a_bank_statement_pass_and_looks_as_far_back_as_the_recipe(real_tokenizer: Path) -> None:
    recipe = precedence.resolve(DEFAULTS, {}, {}, {})
    assert (recipe.no_repeat_ngram_size, recipe.no_repeat_ngram_window) == (20, 90)
    tokenizer = Tokenizer.from_file(str(real_tokenizer))
    assert [tokenizer.id_to_token(token) for token in recipe.no_repeat_ngram_whitelist] == ["<td>", "</td>"]
    rows = [f"<tr><td>{name}</td><td>{amount}</td></tr>" for name, amount in PAYMENTS * 5]
    statement = tokenizer.encode("<table>" + "\n".join(rows) + "</table>", add_special_tokens=False).ids
    whole_page = precedence.resolve(DEFAULTS, {}, {}, {"no_repeat_ngram_window": None, "no_repeat_ngram_whitelist": ()})
    assert forbidden(statement, whole_page) > len(statement) // 4
    assert forbidden(statement, recipe) == 0


def test_a_request_can_have_the_whole_page_back() -> None:
    body = precedence.from_body({"no_repeat_ngram_window": 0, "no_repeat_ngram_whitelist": []})
    settings = precedence.resolve(DEFAULTS, {}, {}, body)
    assert (settings.no_repeat_ngram_window, settings.no_repeat_ngram_whitelist) == (None, ())
