"""Answers follow a schema by every filter and sampler, on whole rows and on candidates, whatever the model knows."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from models.families import FAMILIES
from models.model_errors import InvalidInput
from models.settings import InferenceSettings
from runtime import Model
from runtime.candidates import Candidates, Chooser, certain_tokens
from runtime.grammar import Grammars
from tools.checkpoints import small_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "total": {"type": "integer", "minimum": 0, "maximum": 99},
        "paid": {"type": "boolean"},
        "currency": {"enum": ["EUR", "USD"]},
        "lines": {"type": "array", "items": {"type": "string", "maxLength": 5}, "minItems": 2, "maxItems": 3},
    },
    "required": ["total", "paid", "currency", "lines"],
    "additionalProperties": False,
}
TEXT = json.dumps(SCHEMA)
TOKENIZER = small_tokenizer()
VOCABULARY, EOS = 300, 1


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER, VOCABULARY, [EOS])


def written(chooser: Chooser, choose: Any, most: int = 400) -> str:
    tokens: list[int] = []
    while (token := choose(chooser)) != EOS:
        chooser.observe(token)
        tokens.append(token)
        assert len(tokens) < most
    text: str = TOKENIZER.decode(tokens, skip_special_tokens=False)
    return text


@pytest.mark.parametrize(
    "wanted",
    [{}, {"do_sample": True, "temperature": 1.5, "seed": 3}, {"repetition_penalty": 1.3},
     {"do_sample": True, "temperature": 1.0, "top_k": 5, "top_p": 0.9, "seed": 4}],
)  # fmt: skip
@pytest.mark.parametrize("kept", [VOCABULARY, 16])
def test_an_answer_follows_the_schema_however_its_tokens_are_chosen(grammars: Grammars, wanted: Any, kept: int) -> None:
    rng = np.random.default_rng(5)
    settings = InferenceSettings(no_repeat_ngram_size=0, **wanted)
    chooser = Chooser(settings, np.arange(TOKENIZER.get_vocab_size(), VOCABULARY))
    chooser.observe(EOS)  # of the prompt, which the grammar does not see
    chooser.follow(grammars.follow(TEXT))

    def choose(chooser: Chooser) -> int:
        row = rng.normal(0, 2, VOCABULARY).astype(np.float32)
        if kept < VOCABULARY:
            ids = np.argsort(-row)[:kept]
            best = Candidates(ids[None], row[ids][None], np.array([np.log(np.exp(row).sum())], np.float32))
            (token,) = certain_tokens([chooser], best)
            if token is not None:
                return token
        return chooser.choose(row)

    jsonschema.validate(json.loads(written(chooser, choose)), SCHEMA)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "nonsense"}, "nonsense"),
        ({"properties": {"a": {"$ref": "#/nowhere"}}}, "nowhere"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"allOf": [{"type": "string"}, {"type": "number"}]}, "incompatible"),
        ({"not": {"type": "string"}}, "not"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_with_the_reason(
    grammars: Grammars, schema: Any, told: str
) -> None:
    with pytest.raises(InvalidInput, match=told):
        grammars.follow(json.dumps(schema))


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"a": {"properties": {"b": {"type": "strin"}}}}}, "followed at #/properties/a/properties/b: "),
        ({"properties": {"a": {"items": {"anyOf": [{}, {"type": "x"}]}}}}, "at #/properties/a/items/anyOf/1: "),
        ({"$defs": {"x": {"uniqueItems": True}}, "$ref": "#/$defs/x"}, r"at #/\$defs/x: "),
        ({"type": "nonsense"}, "cannot be followed: "),
    ],
)
def test_a_refusal_names_the_place_in_the_schema(grammars: Grammars, schema: Any, place: str) -> None:
    with pytest.raises(InvalidInput, match=place):
        grammars.follow(json.dumps(schema))


def test_a_token_that_leaves_the_schema_is_an_error_of_its_row(grammars: Grammars) -> None:
    grammar = grammars.follow(TEXT)
    with pytest.raises(RuntimeError, match="followed no further"):
        grammar.observe(TOKENIZER.encode("[").ids[0])


def test_a_model_with_random_weights_answers_by_the_schema(random_model_folder, picture, monkeypatch) -> None:
    able = dataclasses.replace(FAMILIES["deepseek-ocr"], extraction="locate")
    monkeypatch.setattr("models.extraction.FAMILIES", {**FAMILIES, able.id: able})
    with Model.open(random_model_folder, device="cpu", slots=2) as model:
        plain = model.read(picture(90, 60), max_new_tokens=8)
        result = model.read(picture(90, 60), schema=SCHEMA, max_new_tokens=500, repetition_penalty=1.2)
        again = model.read(picture(90, 60), max_new_tokens=8)
    assert result.finished.detail == "eos"
    jsonschema.validate(json.loads(result.text), SCHEMA)
    assert plain.text == again.text
