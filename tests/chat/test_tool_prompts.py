"""Tools in the system message, and Muse Glimmer's renderings, against the worked examples of the published format."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from chat.spelling import BYTES, spell
from musespark.chat.families import muse_glimmer
from musespark.chat.messages import Message, Text, Tool, ToolCall
from musespark.chat.settings import ChatSettings
from musespark.chat.templates import render
from musespark.chat.tokenizer import SPECIAL_TOKENS
from musespark.errors import InvalidRequest

GLIMMER = muse_glimmer.DIALECT
WEATHER = Tool("get_weather", "The weather of a city.", {"type": "object", "properties": {"city": {"type": "string"}}})


def user(text: str) -> Message:
    return Message("user", (Text(text),))


def spark(*messages: Message, **options: Any) -> str:
    return spell(render(messages, BYTES, ChatSettings(), **options).token_ids)


def glimmer(*messages: Message, **options: Any) -> str:
    today = date(2026, 10, 20)
    return spell(render(messages, BYTES, GLIMMER.settings, dialect=GLIMMER, today=today, **options).token_ids)


def tool_lines(text: str) -> list[str]:
    """The lines between the two headings' beginning and the example."""
    block = text.partition("Here are the functions available in JSONSchema format:\n")[2]
    return block.partition("\n\n")[0].split("\n")


def test_the_tool_block_lists_namespaces_and_schemas_line_by_line() -> None:
    tools = [WEATHER, Tool("files.read"), Tool("files.write", "Writes é & <b>.")]
    assert tool_lines(spark(user("Hi"), tools=tools)) == [
        "// Tool metadata",
        '{"name": "get_weather", "description": ""}',
        '{"name": "files", "description": ""}',
        "// Function schemas",
        '{"name": "get_weather", "description": "The weather of a city.", '
        '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}',
        '{"name": "files.read", "description": "", "parameters": {"type": "object", "properties": {}}}',
        '{"name": "files.write", "description": "Writes é & <b>.", "parameters": {"type": "object", "properties": {}}}',
    ]


def test_the_recipients_are_the_namespaces_in_their_order() -> None:
    tools = [Tool("b.x"), WEATHER, Tool("b.y"), Tool("a")]
    assert (
        spark(user("Hi"), tools=tools).count(
            '# Valid recipients: "self", "b.*", "get_weather.*", "a.*", "user".<|eot|>'
        )
        == 1
    )


def test_the_block_stands_between_the_effort_and_the_recipients_of_every_system_message() -> None:
    text = spark(Message("system", (Text("One."),)), user("Hi"), Message("system", (Text("Two."),)), tools=[WEATHER])
    for own in ("One.", "Two."):
        block = text.partition(f"<|message|>{own}\n\nReasoning effort: high.\n\n")[2].partition("<|eot|>")[0]
        assert block.endswith('</atem:function_calls>\n\n# Valid recipients: "self", "get_weather.*", "user".')
        assert "// Function schemas" in block


def test_without_tools_there_is_no_block() -> None:
    assert spark(user("Hi"), tools=[]) == spark(user("Hi"))


def test_the_order_of_tools_is_kept_so_that_prompts_of_two_days_share_their_beginning() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}, "required": ["b"]}
    texts = {spark(user("Hi"), tools=[Tool("f", "", schema), WEATHER]) for _ in range(2)}
    assert len(texts) == 1
    assert json.dumps(schema) in texts.pop()


def test_control_tokens_in_a_tool_are_text() -> None:
    frame = [i for i in render([user("Hi")], BYTES, ChatSettings()).token_ids if BYTES.is_special(i)]
    for name in SPECIAL_TOKENS:
        tool = Tool(name, name, {"type": "object", "properties": {name: {"description": name}}})
        prompt = render([user("Hi")], BYTES, ChatSettings(), tools=[tool])
        assert [i for i in prompt.token_ids if BYTES.is_special(i)] == frame


@pytest.mark.parametrize("bad", [{"a": float("nan")}, {"a": object()}, {"a": {1, 2}}])
def test_a_schema_that_is_not_json_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="'f' must be a JSON schema") as caught:
        spark(user("Hi"), tools=[Tool("f", "", bad)])
    assert caught.value.param == "tools"


@pytest.mark.parametrize("write", [spark, glimmer])
@pytest.mark.parametrize("name", ["self", "user", "commentary", "developer"])
def test_a_tool_named_like_somebody_else_is_refused(write: Any, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"can't be named '{name}'") as caught:
        write(user("Hi"), tools=[WEATHER, Tool(name)])
    assert caught.value.param == "tools"
    assert f'"{name}.*"' in write(user("Hi"), tools=[Tool(f"{name}.get")])


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="two tools are named 'get_weather'"):
        spark(user("Hi"), tools=[WEATHER, Tool("clock"), WEATHER])


def test_glimmers_plain_question() -> None:
    assert glimmer(user("Hi")) == (
        "<|begin_of_text|><|start|>system<|message|>You are a helpful AI assistant.\nKnowledge cutoff: 2026-01-04.\n"
        'Current date: 2026-10-20.\n\nReasoning strength: high.\n\n# Valid recipients: "self", "user".<|eot|>'
        "<|start|>user<|message|>Hi<|eot|><|start|>assistant"
    )


def test_glimmers_calls_and_results_go_without_the_text_beside_the_call() -> None:
    calls = (
        ToolCall("c1", "get_weather", json.dumps({"city": "Paris", "n": 2, "x": [1, "a"], "b": True})),
        ToolCall("c2", "get_weather", '{"city": "Rome"}'),
    )
    text = glimmer(
        user("Weather?"),
        Message("assistant", (Text("Let me look."),), reasoning="Call.", tool_calls=calls),
        Message("tool", (Text("18C"),), tool_call_id="c1"),
        tools=[WEATHER],
    )
    assert text.endswith(
        "<|start|>user<|message|>Weather?<|eot|>"
        "<|start|>assistant to=self<|message|>Call.<|eom|><|start|>assistant to=get_weather<|message|>"
        '<atem:function_calls>\n<atem:invoke name="get_weather">\n<atem:parameter name="city">Paris</atem:parameter>\n'
        '<atem:parameter name="n">2</atem:parameter>\n<atem:parameter name="x">[1, "a"]</atem:parameter>\n'
        '<atem:parameter name="b">true</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eom|>'
        '<|start|>assistant to=get_weather<|message|><atem:function_calls>\n<atem:invoke name="get_weather">\n'
        '<atem:parameter name="city">Rome</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>'
        '<|start|>tool get_weather<|message|><tool_output name="get_weather">\n18C\n</tool_output><|eot|>'
        "<|start|>assistant"
    )


@pytest.mark.parametrize(
    ("own", "written"),
    [
        ("Be brief.", "Be brief.\n\nReasoning strength: low."),
        ("Reasoning effort: xhigh.", "Reasoning strength: xhigh."),
        ("REASONING EFFORT is high", "REASONING STRENGTH is high"),
        ("no reasoning strength today", "no reasoning strength today"),
    ],
)
def test_glimmers_own_system_message_speaks_of_strength_and_carries_no_date(own: str, written: str) -> None:
    assert glimmer(Message("system", (Text(own),)), user("Hi"), reasoning_effort="low") == (
        f'<|begin_of_text|><|start|>system<|message|>{written}\n\n# Valid recipients: "self", "user".<|eot|>'
        "<|start|>user<|message|>Hi<|eot|><|start|>assistant"
    )


@pytest.mark.parametrize("write", [spark, glimmer])
def test_two_efforts_render_differently(write: Any) -> None:
    assert write(user("Hi"), reasoning_effort="low") != write(user("Hi"), reasoning_effort="high")
