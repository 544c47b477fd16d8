"""Settings of a request: ranges, defaults, and replacing some of them."""

from __future__ import annotations

import dataclasses
import math

import pytest

from models.model_errors import InvalidInput
from models.settings import SETTING_NAMES, InferenceSettings

# name: (values inside the range, values outside)
RANGES = {
    "base_size": ([32, 640, 4096], [31, 0, -640, 4097]),
    "image_size": ([32, 512, 4096], [31, 0, -1, 4097]),
    "max_tiles": ([1, 9, 64], [0, -1, 65]),
    "max_new_tokens": ([1, 8192], [0, -1]),
    "deadline_s": ([0, 0.5, 3600], [-0.1]),
    "temperature": ([0, 0.7, 100], [-0.1, 100.1, math.inf]),
    "min_pixels": ([784, 112_896], [783, 0, -1, 11_289_601]),
    "max_pixels": ([784, 11_289_600], [783, 0, -1, 11_289_601]),
    "top_p": ([0, 0.5, 1], [-0.1, 1.1]),
    "top_k": ([1, 50], [0, -1]),
    "seed": ([0, 2**64 - 1], [-1, 2**64]),
    "repetition_penalty": ([0.001, 1, 1.3, 1000], [0, -1, 1001]),
    "no_repeat_ngram_size": ([0, 1, 40], [-1]),
    "no_repeat_ngram_window": ([1, 90], [0, -1]),
}


@pytest.mark.parametrize("name", RANGES)
def test_every_value_in_its_range_is_taken_and_none_outside(name: str) -> None:
    inside, outside = RANGES[name]
    for value in inside:
        assert InferenceSettings().override({name: value}).value(name) == value
    for value in [*outside, math.nan]:
        with pytest.raises(InvalidInput) as caught:
            InferenceSettings().override({name: value})
        assert name in str(caught.value)
        assert str(value) in str(caught.value)


def test_the_defaults_are_greedy_with_the_published_ngram_filter() -> None:
    settings = InferenceSettings()
    assert not settings.samples
    assert settings.no_repeat_ngram_size == 20
    assert settings.family == {}


@pytest.mark.parametrize(
    ("do_sample", "temperature", "samples"), [(False, 1.0, False), (True, 0.0, False), (True, 0.5, True)]
)
def test_sampling_needs_both_the_switch_and_a_temperature(do_sample: bool, temperature: float, samples: bool) -> None:
    assert InferenceSettings(do_sample=do_sample, temperature=temperature).samples is samples


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidInput, match="stop"):
        InferenceSettings(stop=("END", ""))


def test_override_replaces_the_named_values_and_leaves_the_rest_and_the_original() -> None:
    original = InferenceSettings(max_new_tokens=7, top_p=0.9)
    changed = original.override({"top_p": 0.5, "seed": 3})
    assert changed == InferenceSettings(max_new_tokens=7, top_p=0.5, seed=3)
    assert original == InferenceSettings(max_new_tokens=7, top_p=0.9)
    assert original.override({}) == original


def test_override_names_an_unknown_setting_and_the_known_ones() -> None:
    with pytest.raises(InvalidInput) as caught:
        InferenceSettings().override({"temprature": 1})
    assert "'temprature'" in str(caught.value)
    assert all(name in str(caught.value) for name in SETTING_NAMES)


def test_override_checks_ranges_too() -> None:
    with pytest.raises(InvalidInput, match="top_k is 0"):
        InferenceSettings().override({"top_k": 0})


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        InferenceSettings().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("stop", [("x",) * 17, ("x" * 201,)])
def test_stop_strings_are_few_and_short_since_every_token_looks_for_them(stop: tuple[str, ...]) -> None:
    assert InferenceSettings(stop=("x" * 200,) * 16)
    with pytest.raises(InvalidInput, match="16 of up to 200"):
        InferenceSettings(stop=stop)


def test_an_n_gram_is_no_longer_than_what_is_kept_of_each_position() -> None:
    with pytest.raises(InvalidInput, match="no_repeat_ngram_size is 257"):
        InferenceSettings(no_repeat_ngram_size=257)
