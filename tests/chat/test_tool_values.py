"""Names and values of calls: the tool that is meant, and the JSON that the text of a value stands for."""

from __future__ import annotations

from typing import Any

import pytest

from chat.turns import INTEGER, STRING, call, invoke, schema, turn
from musespark.chat.messages import Tool
from musespark.chat.tools import MAX_SCHEMA_DEPTH, parameter_types


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        # By schema a string stays a string, spaces and all.
        *((text, "string", text) for text in ("123", "true", "null", '{"a": 1}', "", "  two \n", '"quoted"', "é\\n\t")),
        ("7", "integer", 7),
        (" 7\n", "integer", 7),
        ("7.0", "integer", 7.0),
        ("-1.5e3", "number", -1500.0),
        ("false", "boolean", False),
        ("null", "null", None),
        ('{"a": [1, {"b": "é"}]}', "object", {"a": [1, {"b": "é"}]}),
        ("[1, 2]", "array", [1, 2]),
        # What does not fit the schema is passed on, for the client's own check to name.
        ("seven", "integer", "seven"),
        ("7", "object", 7),
        # Several types: JSON if it is of one of them, else the text.
        ("7", ["string", "integer"], 7),
        ("true", ["string", "integer"], "true"),
        ("null", ["string", "null"], None),
        ("x", ["string", "null"], "x"),
        # No type: JSON if it is JSON, else the text.
        ("7", None, 7),
        ("[1", None, "[1"),
        ("NaN", None, "NaN"),
        ("Infinity", "number", "Infinity"),
        ("Paris", None, "Paris"),
        ("[" * 100_000, None, "[" * 100_000),
    ],
)
def test_values_are_typed_by_the_schema(text: str, types: Any, value: Any) -> None:
    tool = Tool("f", parameters=schema(v={"type": types} if types else {}))
    assert turn(call("f", ("v", text)), [tool]).calls == [("f", {"v": value})]


def test_a_number_keeps_its_digits() -> None:
    """Python's floats and its limit on the digits of an integer must not show."""
    tool = Tool("f", parameters=schema(v={"type": "number"}))
    assert turn(call("f", ("v", "0.1000000000000000055511151")), [tool]).arguments == [
        '{"v": 0.1000000000000000055511151}'
    ]


@pytest.mark.parametrize(
    ("described", "types"),
    [
        (STRING, {"string"}),
        ({"enum": ["a", "b"]}, {"string"}),
        ({"enum": [1, None]}, {"integer", "number", "null"}),
        ({"const": True}, {"boolean"}),
        ({"anyOf": [STRING, {"type": "null"}]}, {"string", "null"}),
        ({"oneOf": [STRING, {"enum": [1.5]}]}, {"string", "number"}),
        ({"anyOf": [STRING, {}]}, None),
        ({"allOf": [{"description": "x"}, STRING]}, {"string"}),
        ({"$ref": "#/$defs/name"}, {"string"}),
        ({"$ref": "#/$defs/a~1b"}, {"integer"}),
        ({"$ref": "#/$defs/loop"}, None),
        ({"$ref": "#/$defs/absent"}, None),
        ({"$ref": "https://example.com/schema"}, None),
        ({"type": 7}, None),
        ({"properties": {}}, None),
        (True, None),
        ("string", None),
    ],
)
def test_the_types_of_a_parameter(described: Any, types: set[str] | None) -> None:
    definitions = {"name": STRING, "a/b": INTEGER, "loop": {"$ref": "#/$defs/loop"}}
    tool = Tool("f", parameters=schema(v=described) | {"$defs": definitions})
    assert parameter_types(tool, "v") == types


@pytest.mark.parametrize("depth", [MAX_SCHEMA_DEPTH - 1, MAX_SCHEMA_DEPTH])
def test_schemas_are_searched_to_a_limit(depth: int) -> None:
    described: dict[str, Any] = STRING
    for _ in range(depth):
        described = {"anyOf": [described]}
    tool = Tool("f", parameters=schema(v=described))
    assert parameter_types(tool, "v") == ({"string"} if depth < MAX_SCHEMA_DEPTH else None)


@pytest.mark.parametrize("parameters", [{}, {"properties": []}, {"properties": None}, {"type": "object"}])
def test_a_schema_without_properties_types_nothing(parameters: dict[str, Any]) -> None:
    assert turn(call("f", ("v", "7")), [Tool("f", parameters=parameters)]).calls == [("f", {"v": 7})]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("get_weather", "get_weather"),
        ("get_weather.get_weather", "get_weather"),
        ("files.read", "files.read"),
        ("files.files.read", "files.read"),
        ("files.read.read", "files.read"),
        (" clock ", "clock"),
    ],
)
def test_doubled_namespaces_collapse(written: str, meant: str) -> None:
    assert turn(call(written.strip()).replace(f'"{written.strip()}"', f'"{written}"')).names == [meant]


def test_a_name_that_is_offered_as_it_is_stays() -> None:
    assert turn(call("a.a"), [Tool("a"), Tool("a.a")]).names == ["a.a"]


@pytest.mark.parametrize(
    "name", ["weather", "other.get_weather", "get_weather.other", "read.path", "files", "get.clock"]
)
def test_an_unknown_name_is_an_error_that_shows(name: str) -> None:
    written = invoke(name, ("city", "Paris"))
    result = turn(f" to=get_weather<|message|>{written}<|eom|><|start|>assistant{call('clock')}")
    ((message, text),) = result.errors
    assert f"'{name}'" in message
    assert "get_weather, files.read, read, clock" in message
    assert text == written[len("<atem:function_calls>\n") : -len("\n</atem:function_calls>")]
    assert result.calls == [("clock", {})]
    assert result.content == ""


def test_an_unknown_call_that_does_not_end_is_an_error_too() -> None:
    for end in ("", "<|eot|>"):
        (error,) = turn(f' to=x<|message|><atem:invoke name="x">\n<atem:param{end}').errors
        assert error[1] == '<atem:invoke name="x">\n<atem:param'
