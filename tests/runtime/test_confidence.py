"""Log-probabilities of tokens, against torch's softmax, and what they say of a page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from runtime.candidates import Candidates
from runtime.confidence import Confidence, Distribution, Tally, described, token_bytes
from tools.checkpoints import small_tokenizer

torch = pytest.importorskip("torch")

ROW = np.random.default_rng(0).normal(0, 4, 129_280).astype(np.float32)


def reference(logits: np.ndarray) -> np.ndarray:
    result: np.ndarray = torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()
    return result


def candidates_of(logits: np.ndarray, count: int) -> Candidates:
    """As a device picks them: the best of a row, in any order, and the sum over the whole."""
    ids = np.argsort(-logits, kind="stable")[:count][::-1].copy()
    total = torch.logsumexp(torch.from_numpy(logits), -1).numpy()
    return Candidates(ids[None], logits[ids][None], total[None])


def test_log_probabilities_are_those_of_the_softmax_before_anything_is_filtered() -> None:
    row, exact = ROW.copy(), reference(ROW)
    distribution = Distribution.of_row(row)
    row[:] = -np.inf  # what the filters do to it afterwards
    for token in [0, 5, 129_279, int(ROW.argmax())]:
        assert distribution.log_probability(token) == pytest.approx(exact[token], abs=1e-5)
    best = distribution.best(20)
    assert [token for token, _ in best] == np.argsort(-ROW, kind="stable")[:20].tolist()
    assert [one for _, one in best] == pytest.approx([exact[token] for token, _ in best], abs=1e-5)


def test_the_candidates_of_a_device_say_the_same_as_the_whole_row() -> None:
    whole, picked = Distribution.of_row(ROW), Distribution.of_candidates(candidates_of(ROW, 64), 0)
    assert [token for token, _ in picked.best(20)] == [token for token, _ in whole.best(20)]
    for token, one in picked.best(20):
        assert one == pytest.approx(whole.log_probability(token), abs=1e-5)
        assert picked.log_probability(token) == one


def test_a_certain_token_has_no_probability_above_one() -> None:
    logits = np.full(100, -50, np.float32)
    logits[7] = 60
    assert Distribution.of_row(logits).log_probability(7) == 0.0
    assert Distribution.of_row(logits).best(1) == [(7, 0.0)]
    assert [token for token, _ in Distribution.of_row(np.zeros(3, np.float32)).best(20)] == [0, 1, 2]


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=50))
def test_a_pages_confidence_is_the_mean_and_the_lowest_probability_of_its_tokens(logs: list[float]) -> None:
    tally = Tally()
    for one in logs:
        tally.add(one)
    tally.end(-3.0)
    confidence = tally.confidence()
    assert confidence is not None
    assert confidence.mean == pytest.approx(np.exp(logs).mean())
    assert confidence.lowest == pytest.approx(np.exp(logs).min())


def test_an_empty_page_is_as_sure_as_its_end() -> None:
    tally = Tally()
    assert tally.confidence() is None
    tally.end(np.log(0.25))
    assert tally.confidence() == Confidence(pytest.approx(0.25), pytest.approx(0.25))


TEXTS = ["Grüße, 世界 🎉", "<|ref|>a<|/ref|>\n\tb", "  two  blanks ", "№ ½ €"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_the_tokens_joined_are_the_text(text: str, real_tokenizer: Path) -> None:
    for tokenizer in (Tokenizer.from_file(str(real_tokenizer)), small_tokenizer()):
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        assert b"".join(token_bytes(tokenizer, token) for token in tokens) == text.encode()


def test_pieces_of_another_kind_of_vocabulary_have_bytes_too() -> None:
    vocabulary = {"<unk>": 0, "\u2581two": 1, "<0xE2>": 2, "é": 3}
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    tokenizer = Tokenizer.from_str(json.dumps({"version": "1.0", "model": model, "decoder": decoder}))
    assert [token_bytes(tokenizer, token) for token in range(1, 5)] == [b" two", b"\xe2", "é".encode(), b""]


def test_a_token_is_told_with_its_alternatives() -> None:
    tokenizer = small_tokenizer()
    a, b = (tokenizer.token_to_id(letter) for letter in "ab")
    logits = np.full(tokenizer.get_vocab_size(), -30, np.float32)
    logits[[a, b]] = np.log([0.25, 0.75])
    told = described(tokenizer, a, Distribution.of_row(logits), 2)
    assert (told.text, told.data, told.logprob) == ("a", b"a", pytest.approx(np.log(0.25), abs=1e-5))
    assert [(one.text, one.best) for one in told.best] == [("b", ()), ("a", ())]
