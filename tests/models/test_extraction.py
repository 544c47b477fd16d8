"""Extraction: schemas become templates, and models that were not trained to fill one say so."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalog import CATALOG
from models.extraction import MOST_CHARACTERS, extraction, schema_text, template
from models.families import FAMILIES
from models.model_errors import InvalidInput

INVOICE = {
    "type": "object",
    "properties": {
        "total": {"type": "number"},
        "seller": {"$ref": "#/$defs/party"},
        "lines": {"type": "array", "items": {"type": "object", "properties": {"text": {}, "price": {}}}},
        "note": {"anyOf": [{"type": "null"}, {"type": "string"}]},
    },
    "$defs": {"party": {"type": "object", "properties": {"name": {}, "address": {"$ref": "#/$defs/place"}}},
              "place": {"properties": {"city": {}}}},
}  # fmt: skip


def test_a_template_has_every_value_of_the_schema_empty() -> None:
    assert json.loads(template(json.dumps(INVOICE))) == {
        "total": "",
        "seller": {"name": "", "address": {"city": ""}},
        "lines": [{"text": "", "price": ""}],
        "note": "",
    }


def test_a_schema_that_refers_to_itself_has_a_template_all_the_same() -> None:
    tree = {"properties": {"name": {}, "below": {"$ref": "#"}}}
    assert json.loads(template(json.dumps(tree))) == {"name": "", "below": ""}


def test_a_schema_that_doubles_at_every_level_is_refused() -> None:
    levels = {f"l{i}": {"properties": {key: {"$ref": f"#/$defs/l{i + 1}"} for key in "ab"}} for i in range(40)}
    with pytest.raises(InvalidInput, match="more than 2,000 fields"):
        template(json.dumps({"$ref": "#/$defs/l0", "$defs": levels}))


@pytest.mark.parametrize("schema", ["{}", '{"type": "string"}', '{"$ref": "#/nowhere"}', '{"properties": {}}'])
def test_a_schema_without_properties_has_no_template(schema: str) -> None:
    with pytest.raises(InvalidInput, match="names no properties"):
        template(schema)


@pytest.mark.parametrize("schema", ["{", "[]", 7, '"object"', {"description": "x" * MOST_CHARACTERS}])
def test_what_is_no_schema_is_refused(schema: object) -> None:
    with pytest.raises(InvalidInput, match="schema"):
        schema_text(schema)


def objects(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    keys = st.sampled_from(["properties", "items", "anyOf", "$ref", "type", "a"])
    return st.dictionaries(keys, inner | st.lists(inner), max_size=3)


@given(st.recursive(st.text() | st.integers() | st.none(), objects))
def test_any_json_is_a_schema_with_a_template_or_refused(value: object) -> None:
    try:
        text = template(schema_text(value))
    except InvalidInput:
        return
    assert json.loads(text)


def test_a_model_that_cannot_be_asked_for_fields_is_named() -> None:
    with pytest.raises(InvalidInput, match="paddleocr-vl cannot be asked for fields"):
        extraction(CATALOG["paddleocr-vl"], None, "", json.dumps(INVOICE), 1)


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSeek-OCR with its task for words, as if that took a template."""
    able = dataclasses.replace(FAMILIES["deepseek-ocr"], extraction="locate")
    monkeypatch.setattr("models.extraction.FAMILIES", {**FAMILIES, able.id: able})


@pytest.mark.usefixtures("able")
def test_the_client_is_asked_with_the_schemas_template_whatever_its_words_are() -> None:
    schema = json.dumps(INVOICE)
    plain = extraction(CATALOG["deepseek-ocr"], None, "", schema, 1)
    assert template(schema) in plain.prompt
    assert not plain.ignored
    with_words = extraction(CATALOG["deepseek-ocr"], None, "Please give me the fields", schema, 1)
    assert (with_words.prompt, with_words.ignored) == (plain.prompt, True)
    own_prompt = 'Locate <|ref|>{"total": ""}<|/ref|> in the image.'
    assert extraction(CATALOG["deepseek-ocr"], None, own_prompt, schema, 1).prompt == f"<image>\n{own_prompt}"


@pytest.mark.usefixtures("able")
def test_a_template_of_the_clients_own_goes_with_the_task() -> None:
    own = extraction(CATALOG["deepseek-ocr"], "locate", '{"total": ""}', json.dumps(INVOICE), 1)
    assert '{"total": ""}' in own.prompt
    assert "seller" not in own.prompt
    with pytest.raises(InvalidInput, match="task 'free' takes no schema"):
        extraction(CATALOG["deepseek-ocr"], "free", "", json.dumps(INVOICE), 1)
