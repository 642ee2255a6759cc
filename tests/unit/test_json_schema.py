"""Schemas that answers are held to: useful ones pass, everything whose cost is unknown is refused by its word."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.inference.json_schema import MAX_PARTS, MAX_SCHEMA_BYTES, SchemaRefusedError, accepted_schema
from tests.fuzz import json_values

PERSON: dict[str, Any] = {
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 80, "description": "As on the passport."},
        "age": {"type": ["integer", "null"], "minimum": 0, "maximum": 150},
        "born": {"type": "string", "format": "date"},
        "kind": {"enum": ["adult", "child", None]},
        "version": {"const": 1},
        "pets": {"type": "array", "items": {"$ref": "#/$defs/Pet"}, "minItems": 0, "maxItems": 5},
        "contact": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"Pet": {"type": "object", "properties": {"name": {"$ref": "#/$defs/Name"}}}, "Name": {"type": "string"}},
}


def test_the_schema_of_an_ordinary_record_passes_unchanged() -> None:
    assert json.loads(accepted_schema(PERSON)) == PERSON


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "string", "pattern": "(a+)+$"}, "schema.pattern"),
        ({"properties": {"x": {"not": {}}}}, "schema.properties.x.not"),
        ({"$ref": "https://elsewhere.example/schema.json"}, r"schema.\$ref"),
        ({"$ref": "#"}, r"schema.\$ref"),
        ({"$ref": "#/$defs/missing", "$defs": {}}, r"\$defs/missing must be an object"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "leads back to itself"),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, "leads back"),
        ({"minItems": 5, "maxItems": 4}, "schema.maxItems leaves nothing beside minItems"),
        ({"properties": {"x": {"exclusiveMinimum": 4, "exclusiveMaximum": 5}}}, "schema.properties.x.exclusiveMaximum"),
        ({"anyOf": [{}] * 21}, "schema.anyOf"),
        ({"type": "string", "maxLength": 1_001}, "schema.maxLength"),
        ({"type": "array", "minItems": -1}, "schema.minItems"),
        ({"type": "array", "minItems": True}, "schema.minItems"),
        ({"type": "integer", "maximum": 10**12}, "schema.maximum"),
        ({"type": "number", "minimum": 0.5}, "schema.minimum"),
        ({"type": "file"}, "schema.type"),
        ({"type": []}, "schema.type"),
        ({"enum": []}, "schema.enum"),
        ({"enum": [{"deep": 1}]}, "schema.enum.0"),
        ({"enum": list(range(101))}, "schema.enum"),
        ({"const": 10**30}, "schema.const"),
        ({"items": "x"}, "schema.items"),
        ({"anyOf": []}, "schema.anyOf"),
        ({"format": "email"}, "schema.format"),
        ({"required": [1]}, "schema.required"),
        ({"description": 1}, "schema.description"),
        ({"properties": []}, "schema.properties"),
    ],
)
def test_a_word_with_an_unknown_cost_is_refused_by_its_place(schema: dict[str, Any], place: str) -> None:
    with pytest.raises(SchemaRefusedError, match=place):
        accepted_schema(schema)


def test_many_parts_and_many_bytes_are_refused() -> None:
    fits: dict[str, Any] = {"properties": {f"p{number}": {} for number in range(MAX_PARTS - 1)}}
    accepted_schema(fits)
    with pytest.raises(SchemaRefusedError, match=f"more than {MAX_PARTS} parts"):
        accepted_schema({"properties": {**fits["properties"], "one more": {}}})
    doubled: dict[str, Any] = {f"l{n}": {"anyOf": [{"$ref": f"#/$defs/l{n + 1}"}] * 2} for n in range(9)}
    with pytest.raises(SchemaRefusedError, match=f"more than {MAX_PARTS} parts"):
        accepted_schema({"$defs": {**doubled, "l9": {}}, "$ref": "#/$defs/l0"})
    room = MAX_SCHEMA_BYTES - len(accepted_schema({"title": ""}))
    accepted_schema({"title": "x" * room})
    with pytest.raises(SchemaRefusedError, match=f"at most {MAX_SCHEMA_BYTES}"):
        accepted_schema({"title": "x" * (room + 1)})


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*PERSON, "items", "anyOf", "enum", "$ref", "x"]), json_values, max_size=4))
def test_any_document_is_accepted_or_refused_by_type(schema: dict[str, Any]) -> None:
    try:
        text = accepted_schema(schema)
    except SchemaRefusedError:
        return
    assert json.loads(text) == schema
