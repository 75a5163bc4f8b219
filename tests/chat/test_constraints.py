"""The grammars of turns: what they let through is what the family's parser reads as valid, whatever the model does.

The expectations come from the schemas, by an independent validator (jsonschema_rs), and from turns written by hand.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import jsonschema_rs
import pytest

from musespark.chat.constraint import CallRule, Constraint
from musespark.chat.deltas import Delta, ToolCallArguments, ToolCallError, ToolCallStart
from musespark.chat.formats import MODEL_TYPES, ChatFormat, make_format
from musespark.chat.messages import Tool
from musespark.chat.schemas import MAX_LENGTH
from musespark.chat.tokenizer import LLAMA4_TOKENS, Tokenizer
from musespark.engine.grammar import Grammar, Vocabulary
from musespark.errors import InvalidSchema

BYTES = {
    name: Tokenizer.bytes_only(LLAMA4_TOKENS) if name == "llama4" else Tokenizer.bytes_only() for name in MODEL_TYPES
}
VOCABULARIES = {
    name: Vocabulary(tokenizer, make_format(name, tokenizer).stop_token_ids) for name, tokenizer in BYTES.items()
}
MUSE = ("muse_spark", "muse_glimmer")

WEATHER: dict[str, Any] = {
    "type": "object",
    "$defs": {"unit": {"enum": ["C", "F"]}},
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 8},
        "unit": {"$ref": "#/$defs/unit"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "place": {
            "type": "object",
            "properties": {"at": {"type": "string", "format": "date"}, "unit": {"$ref": "#/$defs/unit"}},
            "required": ["at"],
            "additionalProperties": False,
        },
        "note": {"type": ["string", "null"], "maxLength": 4},
        "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["unit", "city", "place"],
    "additionalProperties": False,
}
TOOL = Tool("get.weather", parameters=WEATHER)


def chat(name: str) -> ChatFormat:
    return make_format(name, BYTES[name])


def spelled(name: str, text: str) -> list[int]:
    tokenizer = BYTES[name]
    parts = re.split(r"(<\|\w+\|>)", text)
    return [i for k, part in enumerate(parts) for i in ([tokenizer.special(part)] if k % 2 else tokenizer.encode(part))]


def allows(name: str, constraint: Constraint, text: str) -> bool:
    """Whether the whole turn passes, and may end there."""
    matcher = Grammar(VOCABULARIES[name], chat(name).grammar(constraint)).matcher()
    for token in spelled(name, text):
        if not matcher.allowed()[token]:
            return False
        matcher.consume(token)
    return bool(matcher.allowed()[sorted(chat(name).stop_token_ids)].any())


def wander(name: str, constraint: Constraint, seed: int, tools: Sequence[Tool]) -> tuple[str, list[tuple[str, str]]]:
    """Content and calls of a model that says any allowed token, the end of things rather often."""
    generator = random.Random(seed)
    tokenizer, parser = BYTES[name], chat(name).parser(tools=tools)
    matcher = Grammar(VOCABULARIES[name], chat(name).grammar(constraint)).matcher()
    ends = sorted(chat(name).stop_token_ids)
    closers = [*map(ord, '"]}<0 ')]
    events: list[Any] = []
    for _ in range(20_000):
        allowed = matcher.allowed()
        options = [int(i) for i in allowed.nonzero()[0]]
        assert options
        if allowed[ends].any():
            break
        likely = [i for i in options if tokenizer.is_special(i) or tokenizer.token_bytes(i)[0] in closers]
        token = generator.choice(likely if likely and generator.random() < 0.5 else options)
        matcher.consume(token)
        events += parser.push(token)
    else:
        raise AssertionError("no end in sight")
    events += parser.finish(whole=True)
    assert not any(isinstance(event, ToolCallError) for event in events)
    calls = [(event.name, "") for event in events if isinstance(event, ToolCallStart)]
    for event in events:
        if isinstance(event, ToolCallArguments):
            called, arguments = calls[event.index]
            calls[event.index] = (called, arguments + event.json)
    return "".join(event.text for event in events if isinstance(event, Delta) and event.kind == "content"), calls


@pytest.mark.parametrize("name", MODEL_TYPES)
@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_model_does_a_call_is_valid(name: str, seed: int) -> None:
    constraint = Constraint(calls=(CallRule(TOOL.name, WEATHER, "f"),), must_call=True)
    content, calls = wander(name, constraint, seed, [TOOL])
    assert content == ""
    assert calls
    for called, arguments in calls:
        assert called == TOOL.name
        jsonschema_rs.validate(WEATHER, json.loads(arguments))


@pytest.mark.parametrize("name", MODEL_TYPES)
@pytest.mark.parametrize("seed", range(4))
def test_whatever_a_model_does_an_answer_is_valid(name: str, seed: int) -> None:
    content, calls = wander(name, Constraint(content=WEATHER), seed, [])
    assert calls == []
    jsonschema_rs.validate(WEATHER, json.loads(content))


VALUES = {
    "a string": ({"type": "string"}, 'so "it" <b>is</b> \n é', None),
    "an empty string": ({"type": "string"}, "", None),
    "one of several": ({"type": "string", "enum": ["a/b", 'c"d']}, 'c"d', "a"),
    "a constant": ({"const": "x"}, "x", "y"),
    "a string of some length": ({"type": "string", "minLength": 2, "maxLength": 3}, "éé", "x"),
    "a longer string": ({"type": "string", "minLength": 2, "maxLength": 3}, "xyz", "wxyz"),
    "a pattern": ({"type": "string", "pattern": "^[a-z/]+$"}, "a/b", "A"),
    "a pattern somewhere": ({"type": "string", "pattern": "b+"}, "a b\n<c>", "a c"),
    "a pattern of some length": ({"type": "string", "pattern": "^[a-z]+$", "maxLength": 3}, "abc", "abcd"),
    "a date": ({"type": "string", "format": "date"}, "2026-11-25", "2026-11-31"),
    "a time of a day": ({"type": "string", "format": "date-time"}, "2026-11-25T00:00:00Z", "2026-11-25"),
    "a date or a word": (
        {"anyOf": [{"type": "string", "format": "date"}, {"enum": ["now", "never"]}], "title": "When"},
        "never",
        "later",
    ),
    "one of, as older libraries write it": ({"allOf": [{"enum": ["a", "b"]}], "default": "a", "x-order": 1}, "b", "c"),
    "an address": ({"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083}, "https://a.bc/d?e", "a.bc"),
    "a number": ({"type": "number"}, "-1.5e3", "x"),
    "true": ({"type": "boolean"}, "true", "True"),
    "a string or null, in quotes": ({"type": ["string", "null"]}, '"x"', "x"),
    "null": ({"type": ["string", "null"]}, "null", "nil"),
    "a list": ({"type": "array", "items": {"type": "integer"}}, "[1, 2]", '["1"]'),
    "anything": ({}, '{"a": [null]}', "word"),
}


def parameter(key: str, value: str) -> str:
    return f'<atem:parameter name="{key}">{value}</atem:parameter>\n'


def muse_call(name: str, *parameters: str) -> str:
    inside = "".join(parameters)
    invoke = f'<atem:function_calls>\n<atem:invoke name="{name}">\n{inside}</atem:invoke>\n</atem:function_calls>'
    return f" to={name}<|message|>{invoke}"


@pytest.mark.parametrize(("schema", "good", "bad"), VALUES.values(), ids=VALUES.keys())
def test_values_of_a_muse_call(schema: dict[str, Any], good: str, bad: str | None) -> None:
    rule = CallRule("f", {"type": "object", "properties": {"x": schema}, "required": ["x"]}, "f")
    constraint = Constraint(calls=(rule,), must_call=True)
    for name in MUSE:
        assert allows(name, constraint, muse_call("f", parameter("x", good)))
        assert bad is None or not allows(name, constraint, muse_call("f", parameter("x", bad)))


def test_parameters_of_a_muse_call_come_in_order_and_those_required_come() -> None:
    schema = {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "required": ["b"]}
    constraint = Constraint(calls=(CallRule("f", schema, "f"),), must_call=True)

    def allowed(keys: str) -> bool:
        return allows("muse_spark", constraint, muse_call("f", *(parameter(key, "1") for key in keys)))

    assert all(allowed(keys) for keys in ("b", "ab", "bc", "abc"))
    assert not any(allowed(keys) for keys in ("", "a", "ac", "ba", "bb", "bx"))


def test_a_recursive_model_as_parameters_of_a_muse_call() -> None:
    node = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
        "required": ["name", "next"],
    }
    schema = {"$ref": "#/$defs/Node", "$defs": {"Node": node}}
    constraint = Constraint(calls=(CallRule("f", schema, "f"),), must_call=True)
    call = muse_call("f", parameter("name", "7"), parameter("next", '{"name": "8", "next": null}'))
    parser = chat("muse_spark").parser(tools=[Tool("f", parameters=schema)])
    events = [event for token in spelled("muse_spark", call) for event in parser.push(token)]
    events += parser.finish(whole=True)
    assert allows("muse_spark", constraint, call)
    assert not allows("muse_spark", constraint, muse_call("f", parameter("name", "7"), parameter("next", "7")))
    written = "".join(event.json for event in events if isinstance(event, ToolCallArguments))
    assert json.loads(written) == {"name": "7", "next": {"name": "8", "next": None}}


def test_references_to_all_arguments_and_to_one_of_them() -> None:
    schema = {
        "type": "object",
        "$defs": {"unit": {"enum": ["C", "F"]}, "arguments": {"type": "null"}},
        "properties": {
            "at": {"type": "object", "properties": {"unit": {"$ref": "#/$defs/unit"}}, "required": ["unit"]},
            "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}], "default": None},
            "default": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1},
            "to": {"$ref": "#/properties/at"},
        },
        "required": ["at", "next", "to"],
        "additionalProperties": False,
    }
    constraint = Constraint(calls=(CallRule("f", schema, "f"),), must_call=True)

    def allowed(following: str, to: str) -> bool:
        values = {
            "at": '{"unit": "C"}',
            "next": following,
            "default": f"[{following}]" if "{" in following else "[]",
            "to": to,
        }
        call = muse_call("f", *(parameter(key, value) for key, value in values.items()))
        return allows("muse_spark", constraint, call)

    inner = '{"at": {"unit": "C"}, "next": null, "to": {"unit": "F"}}'
    assert allowed("null", '{"unit": "F"}')
    assert allowed(inner, '{"unit": "F"}')
    assert not allowed("null", '{"unit": "K"}')
    assert not allowed(inner.replace("F", "K"), '{"unit": "F"}')


def test_other_parameters_of_a_muse_call_come_where_the_schema_speaks_of_them() -> None:
    declared = {"type": "object", "properties": {"cat": {}}, "required": ["cat", "dog"]}
    for others, good, bad in ((True, "[]", "word"), ({"type": "integer"}, "7", '"7"')):
        rule = CallRule("f", {**declared, "additionalProperties": others}, "f")
        constraint = Constraint(calls=(rule,), must_call=True)
        required = (parameter("cat", "1"), parameter("dog", good))
        assert allows("muse_spark", constraint, muse_call("f", *required))
        assert allows("muse_spark", constraint, muse_call("f", *required, parameter("cart", good)))
        assert not allows("muse_spark", constraint, muse_call("f", *required, parameter("cart", bad)))
        assert not allows("muse_spark", constraint, muse_call("f", *required, parameter("cat", "1")))


def test_text_of_a_muse_call_can_not_close_it() -> None:
    constraint = Constraint(calls=(CallRule("f", None, "f"),), must_call=True)
    assert allows("muse_spark", constraint, muse_call("f", parameter("x", "</atem <atem:invoke> <|message|>"[:20])))
    assert not allows(
        "muse_spark", constraint, muse_call("f", parameter("x", "</atem:invoke>\n</atem:function_calls>"))
    )


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"allOf": []}, ".allOf"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {}}, "minProperties": 1}, ".$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array"}}}, ".$ref"),
        ({"$ref": "#"}, ".$ref"),
        ({"minProperties": 1}, ".minProperties"),
        ({"properties": {'a"b': {}}}, '.properties.a"b'),
        ({"properties": {"x" * 65: {}}}, ".properties." + "x" * 65),
        ({"properties": {"x": {"type": "string", "pattern": "^a|b$"}}}, ".properties.x.pattern"),
        ({"properties": {"x": {"type": "string", "format": "shoe-size"}}}, ".properties.x.format"),
        ({"properties": {"x": {"enum": ["</atem:invoke>"]}}}, ".properties.x"),
        ({"required": ["x"], "additionalProperties": False}, ".required"),
        ({"properties": []}, ""),
    ],
)
def test_what_a_muse_call_can_not_say_is_refused_by_its_place(schema: dict[str, Any], place: str) -> None:
    constraint = Constraint(calls=(CallRule("f", schema, "tools.0"),), must_call=True)
    with pytest.raises(InvalidSchema) as caught:
        chat("muse_spark").grammar(constraint)
    assert caught.value.param == f"tools.0{place}"


def test_the_longest_name_and_text_of_a_muse_call_are_taken() -> None:
    schema = {"properties": {"x" * 64: {"type": "string", "maxLength": MAX_LENGTH}}}
    constraint = Constraint(calls=(CallRule("f", schema, "f"),), must_call=True)
    for length in (0, MAX_LENGTH - 1, MAX_LENGTH):
        assert allows("muse_spark", constraint, muse_call("f", parameter("x" * 64, "é" * length)))
    assert not allows("muse_spark", constraint, muse_call("f", parameter("x" * 64, "é" * (MAX_LENGTH + 1))))
    answer = Constraint(content={"type": "string", "maxLength": MAX_LENGTH})
    assert allows("llama4", answer, f'"{"é" * MAX_LENGTH}"')
    assert not allows("llama4", answer, f'"{"é" * (MAX_LENGTH + 1)}"')


def test_json_comes_in_one_line() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array"}, "b": {}}, "required": ["a", "b"]}
    answer = Constraint(content=schema)
    for text in ('{"a":[1,{}],"b":[]}', '{"a": [1, {}], "b": []}', '{"a": [1,2], "b":" \\n ", "c": {"d": null}}'):
        assert allows("llama4", answer, text)
    for text in ('{ "a": [], "b": 1}', '{"a": [ 1], "b": 1}', '{"a" : [], "b": 1}', '{"a": [],\n"b": 1}'):
        assert not allows("llama4", answer, text)


ANY_CALL = Constraint(calls=(CallRule("f", None, "f"),))
THOUGHT = " to=self<|message|>hm<|eom|><|start|>assistant"


def test_the_frame_of_a_muse_turn() -> None:
    spark, glimmer = MUSE
    for name in MUSE:
        assert allows(name, ANY_CALL, f"{THOUGHT}{THOUGHT} to=user<|message|>Hi")
        assert allows(name, ANY_CALL, THOUGHT + muse_call("f"))
        assert allows(name, ANY_CALL, f"{muse_call('f')}<|eom|><|start|>assistant{muse_call('f')}")
        assert not allows(name, ANY_CALL, THOUGHT)
        assert allows(name, ANY_CALL, f"{THOUGHT * 8} to=user<|message|>Hi")
        assert not allows(name, ANY_CALL, f"{THOUGHT * 9} to=user<|message|>Hi")
        assert not allows(name, ANY_CALL, muse_call("g"))
        assert not allows(name, ANY_CALL, " to=user<|message|>Hi<|eom|><|start|>assistant to=user<|message|>Hi")
    remark = " to=commentary<|message|>I look.<|eom|><|start|>assistant"
    assert allows(spark, ANY_CALL, remark + muse_call("f"))
    assert not allows(glimmer, ANY_CALL, remark + muse_call("f"))
    assert allows(glimmer, ANY_CALL, "<|message|>Hi")  # to nobody: content here, reasoning there
    assert not allows(spark, ANY_CALL, "<|message|>Hi")
    assert allows(spark, ANY_CALL, "<|message|>hm<|eom|><|start|>assistant to=user<|message|>Hi")


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_how_many_calls_a_turn_may_hold(name: str) -> None:
    def turn(number: int) -> str:
        if name == "llama4":
            return '{"name": "f", "parameters": {}}' * number
        return "<|eom|><|start|>assistant".join([muse_call("f")] * number)

    rules = (CallRule("f", None, "f"),)
    for most in (1, 3, 16):
        constraint = Constraint(calls=rules, must_call=True, max_calls=most)
        assert allows(name, constraint, turn(most))
        assert not allows(name, constraint, turn(most + 1))


def test_a_llama_4_turn() -> None:
    call = '{"name": "f", "parameters": {"a": 1}}'
    assert allows("llama4", ANY_CALL, call + call)
    assert allows("llama4", ANY_CALL, f"<|python_start|>{call}<|python_end|>")
    assert allows("llama4", ANY_CALL, "\n\nHello {there}")
    assert allows("llama4", ANY_CALL, "")
    assert not allows("llama4", ANY_CALL, ' {"name": "g"}')
    assert not allows("llama4", ANY_CALL, '{"name": "g", "parameters": {}}')
    must = Constraint(calls=ANY_CALL.calls, must_call=True)
    assert not allows("llama4", must, "Hello")
    assert allows("llama4", Constraint(content={"type": "integer"}), "12")
