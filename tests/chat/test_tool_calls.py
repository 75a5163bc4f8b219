"""Calls of the Muse families, from the model's notation to the deltas of OpenAI's protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.spelling import BYTES, read
from chat.turns import SELF, TOOLS, USER, call, invoke, parse, schema, turn
from musespark.chat.deltas import ToolCallArguments, ToolCallStart
from musespark.chat.families import muse_glimmer
from musespark.chat.messages import Message, Text, Tool, ToolCall
from musespark.chat.parser import ChatParser
from musespark.chat.templates import render_reply


def test_reasoning_and_two_parallel_calls() -> None:
    paris = invoke("get_weather", ("city", "Paris"), ("days", "2"), ("x", '[1, "a"]'))
    spelled = (
        f"{SELF}Call.<|eom|><|start|>assistant to=get_weather<|message|>{paris}<|eom|>"
        f"<|start|>assistant to=get_weather<|message|>{invoke('get_weather', ('city', 'Rome'))}<|eot|>"
    )
    result = turn(spelled)
    assert (result.reasoning, result.content) == ("Call.", "")
    assert result.calls == [
        ("get_weather", {"city": "Paris", "days": 2, "x": [1, "a"]}),
        ("get_weather", {"city": "Rome"}),
    ]
    assert result.ids == ["id0", "id1"]
    assert result.arguments[0] == '{"city": "Paris", "days": 2, "x": [1, "a"]}'


def test_a_turn_that_starts_with_a_call() -> None:
    """llama.cpp #29240: its grammar waited for the reasoning first."""
    assert turn(call("clock")).calls == [("clock", {})]


def test_reasoning_left_without_an_end_mark_for_a_call() -> None:
    result = turn(f"{SELF}The time!{call('clock')}")
    assert result.reasoning == "The time!"
    assert result.calls == [("clock", {})]


def test_a_remark_to_the_user_before_a_call() -> None:
    result = turn(f" to=commentary<|message|>Let me look.<|eom|><|start|>assistant{call('clock')}")
    assert result.content == "Let me look."
    assert result.calls == [("clock", {})]


@pytest.mark.parametrize("recipient", ["self", "user", "commentary"])
def test_a_call_quoted_to_anyone_but_a_tool_is_text(recipient: str) -> None:
    result = turn(f" to={recipient}<|message|>I would write {invoke('clock')}.<|eot|>")
    assert result.names == []
    assert result.reasoning + result.content == f"I would write {invoke('clock')}."


def test_without_tools_a_body_to_a_tool_is_content() -> None:
    result = turn(call("clock"), tools=[])
    assert result.names == []
    assert result.content == invoke("clock")


def test_several_calls_in_one_body() -> None:
    inner = '<atem:invoke name="clock">\n</atem:invoke>\n<atem:invoke name="read">\n</atem:invoke>\n'
    result = turn(f" to=clock<|message|><atem:function_calls>\n{inner}</atem:function_calls><|eot|>")
    assert result.calls == [("clock", {}), ("read", {})]


def test_the_longest_name_is_read() -> None:
    name = "x" * 128
    assert turn(call(name), [Tool(name)]).names == [name]


def test_thoughts_of_several_messages_are_joined_as_the_family_does() -> None:
    spelled = f"{SELF}One.<|eom|><|start|>assistant{SELF}<|eom|><|start|>assistant{SELF}Two.<|eom|>{USER}4<|eot|>"
    assert turn(spelled).reasoning == "One.Two."
    assert turn(spelled, dialect=muse_glimmer.DIALECT).reasoning == "One.\nTwo."


def test_a_message_to_nobody_is_a_thought_of_spark_and_an_answer_of_glimmer() -> None:
    assert turn("<|message|>Hm.<|eot|>").reasoning == "Hm."
    assert turn("<|message|>Hm.<|eot|>", dialect=muse_glimmer.DIALECT).content == "Hm."


def test_a_string_is_given_out_as_it_comes() -> None:
    parser = ChatParser(BYTES, tools=TOOLS)
    for i in read(
        ' to=read<|message|><atem:function_calls>\n<atem:invoke name="read">\n<atem:parameter name="filePath"'
    ):
        parser.push(i)
    assert parser.num_tool_calls == 1
    assert parser.push(BYTES.encode(">")[0]) == [ToolCallArguments(0, '{"filePath": "')]
    assert parser.body == "tool"
    pieces = [parser.push(i) for i in BYTES.encode('a"<b\n')]
    assert [[e.json for e in events if isinstance(e, ToolCallArguments)] for events in pieces] == [
        ["a"],
        ['\\"'],
        [],
        ["<b"],
        [],
    ]


def test_the_ids_of_calls_are_all_different() -> None:
    parser = ChatParser(BYTES, tools=TOOLS)
    events = [e for i in read(call("clock")[:-7] + invoke("clock") + "<|eot|>") for e in parser.push(i)]
    ids = [event.id for event in events if isinstance(event, ToolCallStart)]
    assert len(set(ids)) == 2
    assert all(call_id.startswith("call_") for call_id in ids)


VALUES = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<"), max_size=20),
    st.sampled_from(["123", "true", " <|eot|> ", "<", "</atem:param", "a\n\n", "<atem:invoke", "to=user"]),
    st.integers(),
    st.booleans(),
    st.none(),
    st.lists(st.integers(), max_size=3),
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES))
def test_what_the_template_writes_the_parser_reads_back(arguments: dict[str, Any]) -> None:
    """With a schema that types each value, arguments survive the round trip through the model's notation."""
    names = {str: "string", int: "integer", bool: "boolean", type(None): "null", list: "array"}
    tool = Tool("f.g", parameters=schema(**{key: {"type": names[type(v)]} for key, v in arguments.items()}))
    message = Message(
        "assistant", (Text(""),), reasoning="R", tool_calls=(ToolCall("1", "f.g", json.dumps(arguments)),)
    )
    result = parse(render_reply(message, BYTES), [tool])
    assert result.calls == [("f.g", arguments)]
    assert result.reasoning == "R"
