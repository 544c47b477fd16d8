"""Filters and samplers against naive rescans of the whole sequence, and against transformers' own processors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from models.settings import InferenceSettings
from runtime.logits import Greedy, NoRepeatNgram, RepetitionPenalty, Sampler, filters_for, sampler_for

VOCABULARY = 6
NONE = np.empty(0, np.int64)

sequences = st.lists(st.integers(0, VOCABULARY - 1), max_size=60)
# Few different values, so that ties are common.
tied_logits = st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=12)
distinct_logits = st.lists(st.integers(-400, 400), min_size=1, max_size=24, unique=True).map(
    lambda values: [value / 32 for value in values]
)


def forbidden_by_rescan(tokens: list[int], size: int, window: int | None, whitelist: set[int]) -> set[int]:
    """The rule of DeepSeek-OCR's vLLM recipe; without a window, of Hugging Face: look at every n-gram of the sequence
    that begins in the window, and forbid its last token when the others are the newest ones."""
    prefix = tokens[len(tokens) - (size - 1) :]
    if len(prefix) < size - 1:
        return set()
    begin = 0 if window is None else max(0, len(tokens) - window)
    grams = [tokens[i : i + size] for i in range(begin, len(tokens) - size + 1)]
    return {gram[-1] for gram in grams if gram[:-1] == prefix} - whitelist


def applied(logit_filter, logits) -> np.ndarray:
    row = np.array(logits, np.float32)
    logit_filter.apply(row)
    return row


@given(
    tokens=sequences,
    size=st.integers(1, 5),
    window=st.none() | st.integers(1, 70),
    whitelist=st.sets(st.integers(0, VOCABULARY - 1), max_size=3),
)
def test_the_ngram_filter_forbids_after_every_token_what_a_rescan_forbids(tokens, size, window, whitelist) -> None:
    ngrams = NoRepeatNgram(size, window, tuple(whitelist))
    for length in range(len(tokens) + 1):
        forbidden = {i for i, value in enumerate(applied(ngrams, np.zeros(VOCABULARY))) if value == -math.inf}
        assert forbidden == forbidden_by_rescan(tokens[:length], size, window, whitelist)
        if length < len(tokens):
            ngrams.observe(tokens[length])


@given(tokens=sequences.filter(bool), size=st.integers(1, 5))
def test_the_ngram_filter_equals_transformers(tokens, size) -> None:
    ngrams = NoRepeatNgram(size)
    for token in tokens:
        ngrams.observe(token)
    logits = np.linspace(-1, 1, VOCABULARY, dtype=np.float32)
    expected = NoRepeatNGramLogitsProcessor(size)(torch.tensor([tokens]), torch.from_numpy(logits)[None].clone())
    np.testing.assert_array_equal(applied(ngrams, logits), expected[0].numpy())


@given(
    tokens=sequences.filter(bool),
    penalty=st.sampled_from([0.5, 0.9, 1.05, 1.3, 5.0]),
    logits=st.lists(st.floats(-50, 50, width=32) | st.just(-math.inf), min_size=VOCABULARY, max_size=VOCABULARY),
)
def test_the_repetition_penalty_equals_transformers(tokens, penalty, logits) -> None:
    ours = RepetitionPenalty(penalty)
    for token in tokens:
        ours.observe(token)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens]), torch.tensor([logits]))
    np.testing.assert_allclose(applied(ours, logits), expected[0].numpy(), rtol=1e-6)


def test_the_repetition_penalty_remembers_more_tokens_than_its_first_room_for_them() -> None:
    ours = RepetitionPenalty(2.0)
    for token in [*range(0, 1000, 2), *range(0, 1000, 4)]:
        ours.observe(token)
    expected = np.ones(1000)
    expected[::2] = 0.5
    np.testing.assert_array_equal(applied(ours, np.ones(1000)), expected)


def naive_distribution(logits: list[float], temperature: float, top_k: int | None, top_p: float) -> dict[int, float]:
    """Rank by logit, then by lower id; keep k; keep the fewest that reach top_p; all in Python floats."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    weights = [math.exp((logits[i] - logits[order[0]]) / temperature) for i in order]
    total = sum(weights)
    kept, reached = {}, 0.0
    for i, weight in zip(order, weights, strict=True):
        if kept and reached >= top_p - 1e-12:
            break
        kept[i] = weight / total
        reached += weight / total
    return {i: p / sum(kept.values()) for i, p in kept.items()}


@given(
    logits=tied_logits,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.sampled_from([0.0, 0.137, 0.41, 0.9371, 1.0]),
)
def test_the_sampler_draws_from_the_naive_distribution_ties_going_to_the_lower_id(
    logits, temperature, top_k, top_p
) -> None:
    ids, probabilities = Sampler(temperature, top_k, top_p, 0).distribution(np.array(logits, np.float32))
    expected = naive_distribution(logits, temperature, top_k, top_p)
    assert list(ids) == list(expected)
    np.testing.assert_allclose(probabilities, list(expected.values()), rtol=1e-9)


@given(
    logits=distinct_logits,
    temperature=st.sampled_from([0.25, 1.0, 4.0]),
    top_k=st.none() | st.integers(1, 30),
    top_p=st.sampled_from([0.0137, 0.5113, 0.9371, 1.0]),
)
def test_the_sampler_draws_from_transformers_distribution(logits, temperature, top_k, top_p) -> None:
    ids, probabilities = Sampler(temperature, top_k, top_p, 0).distribution(np.array(logits, np.float32))
    row = torch.tensor([logits], dtype=torch.float64)
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    for warper in warpers:
        row = warper(None, row)
    expected = row.softmax(-1)[0].numpy()
    ours = np.zeros(len(logits))
    ours[ids] = probabilities
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-12)


@given(logits=tied_logits, seed=st.integers(0, 2**64 - 1))
def test_the_same_seed_draws_the_same_tokens(logits, seed) -> None:
    row = np.array(logits, np.float32)
    one, two = Sampler(1.0, None, 1.0, seed), Sampler(1.0, None, 1.0, seed)
    assert [one.choose(row) for _ in range(8)] == [two.choose(row) for _ in range(8)]


def test_draws_come_as_often_as_their_probabilities_say() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(1.0, None, 1.0, seed=5)
    counts = np.bincount([sampler.choose(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.015)


def test_without_a_seed_two_requests_draw_differently() -> None:
    draw = lambda: [sampler.choose(np.zeros(1000, np.float32)) for _ in range(8)]
    sampler = Sampler(1.0, None, 1.0, None)
    first = draw()
    sampler = Sampler(1.0, None, 1.0, None)
    assert draw() != first


class Fixed:
    """A random generator that always gives one number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


@given(
    allowed=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    forbidden=st.integers(1, 5),
    number=st.sampled_from([0.0, 0.5, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True),
    top_k=st.none() | st.integers(1, 60),
)
@example(allowed=[0.0] * 10, forbidden=1, number=1 - 2**-53, top_k=None)  # the probabilities add up to less than 1
def test_a_token_at_minus_infinity_is_never_drawn_whatever_number_comes(allowed, forbidden, number, top_k) -> None:
    logits = np.array([-math.inf] * forbidden + allowed + [-math.inf] * forbidden, np.float32)
    sampler = Sampler(1.0, top_k, 1.0, 0)
    sampler.random = Fixed(number)
    assert logits[sampler.choose(logits)] > -math.inf


@pytest.mark.parametrize("chooser", [Greedy(), Sampler(1.0, None, 1.0, 0), Sampler(1.0, 2, 0.5, 0)])
@pytest.mark.parametrize("row", [[-math.inf] * 4, [0.0, math.nan, 1.0, 2.0], [0.0, math.inf, 1.0, 2.0]])
def test_a_row_from_which_nothing_can_be_chosen_is_an_error_not_some_token(chooser, row) -> None:
    with pytest.raises(ArithmeticError, match="logits"):
        chooser.choose(np.array(row, np.float32))


def test_greedy_takes_the_largest_and_the_lower_id_of_equals() -> None:
    assert Greedy().choose(np.array([1, 5, 5, 2], np.float32)) == 1


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 5.0, "top_k": 3, "top_p": 0.2, "seed": 4}, {"do_sample": True}]
)
def test_settings_that_do_not_really_sample_decode_greedily(changes) -> None:
    assert isinstance(sampler_for(InferenceSettings(**changes)), Greedy)


def test_settings_that_sample_are_passed_on() -> None:
    settings = InferenceSettings(do_sample=True, temperature=0.5, top_k=2, top_p=0.9, seed=3)
    ids, probabilities = sampler_for(settings).distribution(np.array([0, 1, 2], np.float32))
    assert list(ids) == [2, 1]
    np.testing.assert_allclose(probabilities, np.exp([0, -2]) / np.exp([0, -2]).sum())


@given(
    logits=st.lists(st.floats(-10, 10, width=32), min_size=8, max_size=8),
    forbidden=st.sets(st.integers(0, 7), max_size=7),
    sampling=st.booleans(),
    penalty=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 2**32),
)
def test_rows_without_a_token_are_never_produced_even_with_the_largest_logits(
    logits, forbidden, sampling, penalty, seed
) -> None:
    settings = InferenceSettings(
        do_sample=sampling, temperature=1.0, seed=seed, repetition_penalty=penalty, no_repeat_ngram_size=0
    )
    filters = filters_for(settings, np.array(sorted(forbidden), np.int64))
    sampler = sampler_for(settings)
    for _ in range(5):
        row = np.array(logits, np.float32)
        row[sorted(forbidden)] = 1000.0
        for logit_filter in filters:
            logit_filter.apply(row)
        token = sampler.choose(row)
        assert token not in forbidden
        for logit_filter in filters:
            logit_filter.observe(token)


def test_filters_that_are_switched_off_are_not_there() -> None:
    assert filters_for(InferenceSettings(no_repeat_ngram_size=0), NONE) == []
    assert len(filters_for(InferenceSettings(no_repeat_ngram_size=3, repetition_penalty=1.2), np.array([1]))) == 3
