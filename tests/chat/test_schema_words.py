"""What libraries write into schemas, in words that a grammar can be made of; jsonschema_rs judges what is valid."""

from __future__ import annotations

import json
import uuid
from typing import Any

import jsonschema_rs
import pytest

from musespark.chat.constraint import json_grammar
from musespark.chat.schema_words import plain
from musespark.chat.schemas import check_schema
from musespark.chat.tokenizer import Tokenizer
from musespark.engine.grammar import Grammar, Vocabulary
from musespark.errors import InvalidSchema

TOKENIZER = Tokenizer.bytes_only()
END = TOKENIZER.special("<|eot|>")
VOCABULARY = Vocabulary(TOKENIZER, {END})
DECIMAL = {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}  # of pydantic 2.12
KEYS = {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}}
NAMED = {"type": "object", "propertyNames": {"type": "string", "pattern": "^x"}}
FORMATLESS = {"uuid4": str(uuid.UUID(int=7, version=4)), "uuid7": "0192f0c1-8e3b-7d4e-9a3c-0123456789ab"}

TAKEN: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "unique, said to be false": ({"type": "array", "uniqueItems": False}, ["[1,1]"], ["1"]),
    "unique, of one": ({"type": "array", "uniqueItems": True, "maxItems": 1}, ["[]", "[1]"], ["[1,2]"]),
    "a set of enums in $defs": (
        {"$ref": "#/$defs/s", "$defs": {"s": {"type": "array", "maxItems": 1, "uniqueItems": True}}},
        ["[2]"],
        ["[2,2]"],
    ),
    "notes": (
        {
            "$id": "https://a.b",
            "type": "string",
            "example": 1,
            "contentMediaType": "a/b",
            "x-order": 3,
            "nullable": True,
        },
        ['"a"'],
        ["1"],
    ),
    "a secret": ({"type": "string", "format": "password", "writeOnly": True}, ['"a"'], ["1"]),
    "bytes": ({"type": "string", "format": "binary", "maxLength": 1}, ['"a"'], ['"ab"']),
    "a random uuid": ({"type": "string", "format": "uuid4"}, [f'"{FORMATLESS["uuid4"]}"'], [f'"{uuid.UUID(int=7)}"']),
    "a uuid of time": (
        {"type": "string", "format": "uuid7"},
        [f'"{FORMATLESS["uuid7"]}"'],
        [f'"{FORMATLESS["uuid4"]}"'],
    ),
    "a decimal": (DECIMAL, ['"1"', '"-1.5"', '"+.5"', '"2."'], ['""', '"."', '"-"', '"1.2.3"', '"a"']),
    "a map of some keys": ({"items": KEYS}, ["[{}]", '[{"b":1}]', '[{"a":1,"b":2}]'], ['[{"c":1}]', '[{"a":"1"}]']),
    "a map of keys by pattern": ({"items": NAMED}, ["[{}]", '[{"xa":[1]}]'], ['[{"a":1}]']),
}


def allows(schema: dict[str, Any], text: str) -> bool:
    matcher = Grammar(VOCABULARY, json_grammar(schema)).matcher()
    for token in TOKENIZER.encode(text):
        if not matcher.allowed()[token]:
            return False
        matcher.consume(token)
    return bool(matcher.allowed()[END])


@pytest.mark.parametrize(("schema", "good", "bad"), TAKEN.values(), ids=TAKEN.keys())
def test_what_libraries_write_is_held_to(schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    written = plain(schema)
    check_schema(written, "s")
    for text in good:
        assert allows(written, text), text
        if schema is not DECIMAL:  # the validator knows no look-ahead that could be compared in linear time
            jsonschema_rs.validate(schema, json.loads(text))
    assert not any(allows(written, text) for text in bad)


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"uniqueItems": True}, "s.uniqueItems"),
        ({"uniqueItems": True, "maxItems": 2}, "s.uniqueItems"),
        ({"uniqueItems": 0}, "s.uniqueItems"),
        ({"items": {"$id": "a"}}, "s.items.$id"),
        ({"propertyNames": {"enum": ["a"]}}, "s.propertyNames"),
        ({"items": {"propertyNames": {"minLength": 2}}}, "s.items.propertyNames"),
        ({"items": {"propertyNames": {"enum": ["a"]}, "properties": {"b": {}}}}, "s.items.propertyNames"),
        ({"items": {"propertyNames": {"enum": [1]}}}, "s.items.propertyNames"),
        ({"x-guidance": {}}, "s.x-guidance"),
        ({"unevaluatedProperties": False}, "s.unevaluatedProperties"),
    ],
)
def test_what_can_not_be_said_otherwise_is_left_to_be_refused(schema: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSchema) as caught:
        check_schema(plain(schema), "s")
    assert caught.value.param == param


def test_that_items_differ_is_left_to_the_model_where_a_tool_is_not_strict() -> None:
    schema = {"properties": {"tags": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}}}
    written = plain(schema, strict=False)
    check_schema(written, "s")
    assert written == {"properties": {"tags": {"type": "array", "items": {"enum": ["a", "b"]}}}}
    with pytest.raises(InvalidSchema):
        check_schema(plain({**schema, "not": {}}, strict=False), "s")


def test_names_of_properties_and_values_are_not_keywords() -> None:
    schema = {
        "properties": {"uniqueItems": {"type": "string"}, "format": {"const": {"format": "path"}}},
        "enum": [{"uniqueItems": False}],
        "required": ["format"],
    }
    assert plain(schema) == schema
    assert plain(True) is True
