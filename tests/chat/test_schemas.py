"""Which schemas are taken: every limit on both sides, every keyword that is refused by its path, bombs in no time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from musespark.chat import schemas
from musespark.chat.schemas import check_schema, check_size, resolve
from musespark.errors import InvalidSchema


def refusal(schema: Any) -> InvalidSchema:
    with pytest.raises(InvalidSchema) as caught:
        check_schema(schema, "s")
    assert (caught.value.status, caught.value.code) == (400, "invalid_schema")
    return caught.value


def nested(levels: int) -> dict[str, Any]:
    """So many schemas inside each other."""
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


def doubling(steps: int, keyword: str) -> dict[str, Any]:
    """A few bytes that stand for 2 ** steps schemas."""
    defs = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(steps)}
    return {"$defs": defs | {f"d{steps}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


def test_everything_that_is_documented_is_taken() -> None:
    check_schema(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "t",
            "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
            "type": "object",
            "properties": {
                "a": {"type": ["string", "null"], "minLength": 1, "maxLength": 5, "pattern": "a", "format": "uuid"},
                "b": {"anyOf": [{"const": 1}, {"enum": [2, 3]}], "description": "d", "default": 1, "examples": [1]},
                "c": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 2},
                "d": {"prefixItems": [{}, True], "items": False},
                "e": {"minimum": 0, "maximum": 1, "exclusiveMinimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.5},
                "f": {"oneOf": [{"type": "string"}, {"type": "integer"}], "allOf": [{}], "deprecated": True},
                "g": {"$ref": "#/$defs/node"},
            },
            "patternProperties": {"^x": {}},
            "minProperties": 1,
            "maxProperties": 9,
            "required": ["a"],
            "additionalProperties": False,
        },
        "s",
    )


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"not": {}}, "s.not"),
        ({"properties": {"a": {"items": {"if": {}}}}}, "s.properties.a.items.if"),
        ({"anyOf": [{}, {"contains": {}}]}, "s.anyOf.1.contains"),
        ({"$defs": {"x": {"dependentRequired": {}}}}, "s.$defs.x.dependentRequired"),
        ({"x-guidance": {"lenient": True}}, "s.x-guidance"),
        ({"items": {"$id": "https://example.com"}}, "s.items.$id"),
        ({"$dynamicRef": "#a"}, "s.$dynamicRef"),
        ({"items": {"$ref": "other.json#/a"}}, "s.items.$ref"),
        ({"$ref": 5}, "s.$ref"),
        ({"$ref": "#/$defs/a"}, "s.$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": 5}}, "s.$ref"),
    ],
)
def test_a_keyword_that_can_not_be_held_to_is_named_by_its_path(schema: Any, param: str) -> None:
    error = refusal(schema)
    assert error.param == param
    assert f"`{param}`" in error.message


def test_bytes_on_both_sides() -> None:
    frame = len('{"title": ""}')
    assert check_size({"title": "x" * (schemas.MAX_SCHEMA_BYTES - frame)}, "s") == schemas.MAX_SCHEMA_BYTES
    with pytest.raises(InvalidSchema, match="has 65,537 bytes; at most 65,536"):
        check_size({"title": "x" * (schemas.MAX_SCHEMA_BYTES - frame + 1)}, "s")
    with pytest.raises(InvalidSchema):
        check_size({"title": float("nan")}, "s")


def test_levels_on_both_sides() -> None:
    check_schema(nested(schemas.MAX_SCHEMA_LEVELS), "s")
    assert "too deep" in refusal(nested(schemas.MAX_SCHEMA_LEVELS + 1)).message


def test_properties_on_both_sides() -> None:
    check_schema({"properties": {f"p{i}": {} for i in range(schemas.MAX_PROPERTIES)}}, "s")
    error = refusal({"properties": {f"p{i}": {} for i in range(schemas.MAX_PROPERTIES + 1)}})
    assert error.param == "s.properties"


def test_lengths_on_both_sides() -> None:
    check_schema({"minLength": 0, "maxLength": 4_096}, "s")
    for wrong in (4_097, 1e9, -1, "1", None, True):
        assert refusal({"properties": {"x": {"maxLength": wrong}}}).param == "s.properties.x.maxLength"
        assert refusal({"minLength": wrong}).param == "s.minLength"


def test_alternatives_on_both_sides() -> None:
    ways = [{"const": i} for i in range(16)]
    check_schema({"allOf": [{"anyOf": ways}, {"oneOf": ways}]}, "s")
    assert "alternatives" in refusal({"allOf": [{"anyOf": ways}, {"oneOf": ways}, {"anyOf": ways[:2]}]}).message
    check_schema({"properties": {f"p{i}": {"anyOf": ways} for i in range(20)}}, "s")  # these stand beside each other


def test_parts_on_both_sides() -> None:
    enum = list(range(99))  # with the schema itself 100 parts
    part = {"properties": {f"p{i}": {"$ref": "#/$defs/e"} for i in range(100)}}

    def schema(extra: int) -> dict[str, Any]:
        # 1 + 100 * (1 + 100) = 10,101 for `part`; the rest makes it 20,000
        rest = {f"q{i}": {"$ref": "#/$defs/e"} for i in range(97)}  # 97 * 101 = 9,797
        filler = {f"r{i}": {} for i in range(20_000 - 10_101 - 9_797 - 2 + extra)}
        return {
            "$defs": {"e": {"enum": enum}},
            "properties": {"a": {**part}, "b": {"properties": {**rest, **filler}}},
        }

    check_schema(schema(0), "s")
    assert "20,000 parts" in refusal(schema(1)).message


@pytest.mark.parametrize("keyword", ["anyOf", "allOf", "prefixItems"])
def test_a_bomb_of_references_takes_no_time(keyword: str) -> None:
    began_s = time.perf_counter()
    refusal(doubling(14, keyword))
    assert time.perf_counter() - began_s < 0.5
    check_schema(doubling(6, keyword), "s")


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf", "allOf"])
def test_depth_takes_no_time(keyword: str) -> None:
    schema: dict[str, Any] = {"enum": list(range(1000))}
    for _ in range(schemas.MAX_SCHEMA_LEVELS - 1):
        schema = {keyword: [schema]}
    began_s = time.perf_counter()
    check_schema(schema, "s")
    assert time.perf_counter() - began_s < 0.2


def test_a_schema_may_refer_to_itself() -> None:
    check_schema({"properties": {"next": {"$ref": "#"}}}, "s")
    check_schema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "s")


def test_references_are_json_pointers() -> None:
    root = {"$defs": {"a/b": {"~c": [{"x": 1}]}}}
    assert resolve("#", root) is root
    assert resolve("#/$defs/a~1b/~0c/0", root) == {"x": 1}
    for nowhere in ("#/none", "#/$defs/a~1b/~0c/1", "#/$defs/a~1b/~0c/x", "other#/$defs", "", "#/$defs/a~1b/~0c/0/x/y"):
        assert resolve(nowhere, root) is None


@pytest.mark.parametrize("keyword", ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"])
def test_bounds_of_numbers_on_both_sides(keyword: str) -> None:
    for good in (0, 1e-9, -1e-9, 2**64, -1e20, 1e20):
        check_schema({keyword: good}, "s")
    for bad in (9e-10, 1e21, -1e308, 5e-324, 10**400):
        assert refusal({"items": {keyword: bad}}).param == f"s.items.{keyword}"
