"""Tokens chosen from the best of each row are those that whole rows give, whatever the settings and the logits."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from models.settings import InferenceSettings
from runtime.candidates import Candidates, Chooser, HostScores, certain_tokens
from runtime.providers import ort
from runtime.small_graphs import candidates_graph

VOCABULARY = 24
FORBIDDEN = np.array([3, 22, 23])

# Few different values, so that ties are common; and what should not come out of a decoder, and does when one overflows.
tied = st.sampled_from([-2.0, -0.5, -0.0, 0.0, 0.5, 1.0, 3.0, 3.0625])
finite = st.floats(-60, 60, width=32)
broken = st.sampled_from([math.nan, math.inf, -math.inf])


@st.composite
def rows_of_logits(draw) -> np.ndarray:
    """[rows, vocabulary]; most rows finite."""
    values = draw(st.sampled_from([tied, finite, tied | st.just(-math.inf), tied | broken]))
    count = draw(st.integers(1, 4))
    rows = st.lists(st.lists(values, min_size=VOCABULARY, max_size=VOCABULARY), min_size=count, max_size=count)
    return np.array(draw(rows), np.float32)


requests = st.builds(
    InferenceSettings,
    do_sample=st.booleans(),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    top_k=st.none() | st.integers(1, 10) | st.just(1000),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 5),
    repetition_penalty=st.sampled_from([1.0, 0.5, 0.95, 1.05, 1.5]),
    no_repeat_ngram_size=st.integers(0, 3),
    no_repeat_ngram_window=st.none() | st.integers(1, 12),
    no_repeat_ngram_whitelist=st.sampled_from([(), (5, 6)]),
)


@cache
def session(count: int) -> ort.InferenceSession:
    return ort.InferenceSession(candidates_graph(count), providers=["CPUExecutionProvider"])


def candidates_of(logits: np.ndarray, count: int) -> Candidates:
    best, ids, log_sum_exp = session(count).run(["best", "ids", "log_sum_exp"], {"logits": logits})
    return Candidates(ids, best, log_sum_exp, complete=count == logits.shape[1])


def whole_choice(chooser: Chooser, logits: np.ndarray) -> int | str:
    try:
        return chooser.choose(logits.copy())
    except FloatingPointError as error:
        return str(error)


@hypothesis_settings(deadline=None)
@given(
    steps=st.lists(rows_of_logits(), min_size=1, max_size=5),
    wanted=st.lists(requests, min_size=4, max_size=4),
    prompt=st.lists(st.integers(0, VOCABULARY - 1), max_size=12),
    count=st.sampled_from([1, 2, 6, 12, VOCABULARY]),
    forbidden=st.sampled_from([FORBIDDEN, np.empty(0, np.int64)]),
)
@example(
    steps=[np.array([[3.0] * 8 + [0.0] * 16], np.float32)], wanted=[InferenceSettings()] * 4, prompt=[], count=6,
    forbidden=FORBIDDEN,
)  # fmt: skip
def test_candidates_give_the_tokens_that_whole_rows_give(steps, wanted, prompt, count, forbidden) -> None:
    """A row of which the choice is not certain is chosen from as the engine does then: by the whole row."""
    ours, theirs = ([Chooser(one, forbidden) for one in wanted] for _ in range(2))
    for chooser in (*ours, *theirs):
        for token in prompt:
            chooser.observe(token)
    for logits in steps:
        rows = len(logits)
        certain = certain_tokens(ours[:rows], candidates_of(logits, count))
        for row, token in enumerate(certain):
            expected = whole_choice(theirs[row], logits[row])
            found = whole_choice(ours[row], logits[row]) if token is None else token
            assert found == expected
            if isinstance(expected, int):
                ours[row].observe(expected)
                theirs[row].observe(expected)


@given(logits=st.permutations([value / 8 for value in range(VOCABULARY)]), seed=st.integers(0, 9))
def test_what_requests_mostly_ask_for_is_certain(logits, seed) -> None:
    """Or every row would be fetched, and the test above would prove nothing."""
    row = np.array([logits], np.float32)
    for wanted in (
        InferenceSettings(),
        InferenceSettings(repetition_penalty=1.2, no_repeat_ngram_size=2),
        InferenceSettings(do_sample=True, temperature=0.8, top_k=3, top_p=0.9, seed=seed),
    ):
        assert certain_tokens([Chooser(wanted, FORBIDDEN)], candidates_of(row, 8)) != [None]


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param({"do_sample": True, "temperature": 1.0}, id="sampling without top k"),
        pytest.param({"do_sample": True, "temperature": 1.0, "top_k": 9}, id="a top k beyond the candidates"),
        pytest.param({"repetition_penalty": 0.9}, id="a penalty that lifts"),
    ],
)
def test_what_candidates_cannot_tell_takes_the_whole_row(wanted) -> None:
    row = np.linspace(-1, 1, VOCABULARY, dtype=np.float32)[None]
    assert certain_tokens([Chooser(InferenceSettings(**wanted), FORBIDDEN)], candidates_of(row, 8)) == [None]


def test_a_row_of_which_every_candidate_is_forbidden_is_taken_whole() -> None:
    row = np.zeros((1, VOCABULARY), np.float32)
    row[0, FORBIDDEN] = 5
    chooser = Chooser(InferenceSettings(), FORBIDDEN)
    assert certain_tokens([chooser], candidates_of(row, 3)) == [None]
    assert chooser.choose(row[0]) == 0


def test_rows_that_get_no_token_and_hosts_that_have_whole_rows_are_left_alone() -> None:
    row = np.linspace(-1, 1, VOCABULARY, dtype=np.float32)[None].repeat(2, 0)
    chooser = Chooser(InferenceSettings(), FORBIDDEN)
    assert certain_tokens([None, chooser], candidates_of(row, 8)) == [None, 21]
    scores = HostScores(row)
    assert certain_tokens([chooser, chooser], scores.candidates) == [None, None]
    assert (len(scores), scores.whole(1).shape) == (2, (VOCABULARY,))


def test_the_graph_is_a_valid_model_and_sums_rows_without_overflow() -> None:
    model = onnx.load_from_string(candidates_graph(64))
    onnx.checker.check_model(model, full_check=True)
    logits = np.random.default_rng(0).normal(0, 40, (3, 500)).astype(np.float32)
    logits[1] += 300
    found = candidates_of(logits, 64)
    exact = logits.astype(np.float64)
    expected = exact.max(1) + np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1))
    np.testing.assert_allclose(found.log_sum_exp, expected, rtol=1e-6)
    np.testing.assert_array_equal(np.sort(found.ids, 1), np.sort(np.argsort(-logits, 1)[:, :64], 1))
    np.testing.assert_array_equal(found.logits, np.take_along_axis(logits, found.ids, 1))
