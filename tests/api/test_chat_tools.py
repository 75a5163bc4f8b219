"""`tools`, `tool_choice` and `response_format` as they come in: what is understood, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from musespark.api.chat_request import parse_request
from musespark.chat.messages import Tool
from musespark.errors import InvalidRequest
from musespark.providers.base import AnswerSchema, ChatRequest, OfferedTool

USER = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def understood(*history: dict[str, Any], **fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [USER, *history], **fields}
    return parse_request(body).to_request("r1", b"salt")


def refusal(*history: dict[str, Any], **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        understood(*history, **fields)
    return caught.value


def function(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def call(**fields: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"} | fields}


def asks(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def test_a_function_becomes_a_tool_and_says_where_its_schema_stands() -> None:
    [offered] = understood(tools=[function("look", description="Looks.", parameters=SCHEMA, strict=True)]).tools
    assert offered == OfferedTool(Tool("look", "Looks.", SCHEMA), True, "tools.0.function.parameters")


@pytest.mark.parametrize("fields", [{}, {"description": None, "parameters": None, "strict": None}])
def test_what_a_definition_leaves_out_means_nothing_and_no_parameters(fields: dict[str, Any]) -> None:
    [offered] = understood(tools=[function(**fields)]).tools
    assert offered.tool == Tool("f", "", {"type": "object", "properties": {}})
    assert not offered.strict


def test_tools_in_a_namespace_are_offered_under_their_full_names() -> None:
    namespace = {
        "type": "namespace",
        "name": "files",
        "description": "",
        "tools": [function("read"), function("write")],
    }
    tools = understood(tools=[function("f"), namespace]).tools
    assert [offered.tool.name for offered in tools] == ["f", "files.read", "files.write"]
    assert tools[2].field == "tools.1.tools.1.function.parameters"
    named = understood(tools=[namespace], tool_choice=function("files.read"))
    assert (named.tool_choice, named.only_tool) == ("required", "files.read")


def test_the_choices() -> None:
    tools = [function()]
    assert understood(tools=tools).tool_choice == understood(tools=tools, tool_choice="auto").tool_choice == "auto"
    assert understood(tools=tools, tool_choice="none").tools == ()
    required = understood(tools=tools, tool_choice="required")
    assert (required.tool_choice, required.only_tool) == ("required", None)
    assert understood(tools=tools, parallel_tool_calls=False).parallel_tool_calls is False
    assert understood(tools=tools).parallel_tool_calls is True


def test_formats_of_the_answer() -> None:
    assert understood(response_format={"type": "text"}).answer_schema is None
    anything = understood(response_format={"type": "json_object"}).answer_schema
    assert anything == AnswerSchema({"type": "object"}, "response_format")
    for strict in (True, False, None):
        json_schema = {"name": "place", "description": "A place.", "schema": SCHEMA, "strict": strict}
        asked = understood(response_format={"type": "json_schema", "json_schema": json_schema}).answer_schema
        assert asked == AnswerSchema(SCHEMA, "response_format.json_schema.schema")


REFUSED = [
    ({"tools": {}}, "invalid_request", "tools"),
    ({"tools": [5]}, "invalid_request", "tools.0"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "unsupported_field", "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "invalid_request", "tools.0.function"),
    ({"tools": [function("")]}, "invalid_request", "tools.0.function.name"),
    ({"tools": [function("a b")]}, "invalid_request", "tools.0.function.name"),
    ({"tools": [function("f<|eot|>")]}, "invalid_request", "tools.0.function.name"),
    ({"tools": [function(parameters=[])]}, "invalid_request", "tools.0.function.parameters"),
    ({"tools": [function(returns={})]}, "unsupported_field", "tools.0.function.returns"),
    ({"tools": [{"type": "namespace", "name": "n", "tools": []}]}, "invalid_request", "tools.0.tools"),
    (
        {"tools": [{"type": "namespace", "name": "n", "description": "x", "tools": [function()]}]},
        "unsupported_field",
        "tools.0.description",
    ),
    ({"tool_choice": "required"}, "invalid_request", "tool_choice"),
    ({"tool_choice": function()}, "invalid_request", "tool_choice"),
    ({"tools": [function()], "tool_choice": "any"}, "invalid_request", "tool_choice"),
    ({"tools": [function()], "tool_choice": 1}, "invalid_request", "tool_choice"),
    ({"tools": [function()], "tool_choice": function("g")}, "invalid_request", "tool_choice.function.name"),
    ({"tools": [function()], "tool_choice": {"type": "allowed_tools"}}, "invalid_request", "tool_choice.type"),
    ({"tools": [function()], "parallel_tool_calls": 1}, "invalid_request", "parallel_tool_calls"),
    ({"response_format": "json"}, "invalid_request", "response_format"),
    ({"response_format": {"type": "xml"}}, "unsupported_field", "response_format.type"),
    ({"response_format": {"type": "text", "schema": {}}}, "unsupported_field", "response_format.schema"),
    ({"response_format": {"type": "json_schema"}}, "invalid_request", "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
        "invalid_request",
        "response_format.json_schema.schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        "invalid_request",
        "response_format.json_schema.name",
    ),
]


@pytest.mark.parametrize(("fields", "code", "param"), REFUSED)
def test_what_can_not_be_done_is_refused_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    error = refusal(**fields)
    assert (error.status, error.code, error.param) == (400, code, param)


def test_limits_on_both_sides() -> None:
    assert understood(tools=[function("x" * 64)]).tools[0].tool.name == "x" * 64
    assert refusal(tools=[function("x" * 65)]).param == "tools.0.function.name"
    assert len(understood(tools=[function(f"f{i}") for i in range(128)]).tools) == 128
    assert refusal(tools=[function(f"f{i}") for i in range(129)]).param == "tools"
    assert understood(tools=[function(description="x" * 16_384)])
    assert refusal(tools=[function(description="x" * 16_385)]).param == "tools.0.function.description"


def test_a_result_follows_the_call_that_it_answers() -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": "18 degrees"}
    assert understood(asks(call()), result).messages[2].tool_call_id == "c1"
    assert understood(asks(call()), result, USER, result)
    for history in ((result,), (result, asks(call())), (asks(call()), result | {"tool_call_id": "c2"})):
        error = refusal(*history)
        assert error.param == f"messages.{1 + [m['role'] for m in history].index('tool')}.tool_call_id"


@pytest.mark.parametrize("arguments", ["", "{}", '{"a": {"b": [1, "é"]}}', " {} "])
def test_arguments_of_an_earlier_call_are_an_object(arguments: str) -> None:
    assert understood(asks(call(arguments=arguments))).messages[1].tool_calls[0].arguments == arguments


@pytest.mark.parametrize("arguments", ['{"a": ', "[]", "1", "null", "no json", '{"a": NaN}', "[" * 100_000, " "])
def test_arguments_that_are_no_object_are_refused_by_their_place(arguments: str) -> None:
    error = refusal(asks(call(), call(arguments=arguments)))
    assert (error.code, error.param) == ("invalid_request", "messages.1.tool_calls.1.function.arguments")


def test_a_json_object_may_have_its_schema_beside_it_as_other_servers_take_it() -> None:
    asked = understood(response_format={"type": "json_object", "schema": {"properties": {"a": {"type": "null"}}}})
    schema = {"type": "object", "properties": {"a": {"type": "null"}}}
    assert asked.answer_schema == AnswerSchema(schema, "response_format.schema")
    assert refusal(response_format={"type": "json_object", "schema": 5}).param == "response_format.schema"
