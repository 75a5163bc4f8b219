"""Llama 4's prompts, against the template that transformers publishes, run by transformers' own renderer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from chat import published_template
from chat.image_samples import encoded, picture
from chat.spelling import LLAMA4_BYTES, read, spell
from musespark.chat.llama4_template import render
from musespark.chat.messages import Image, Message, Text, Tool, ToolCall
from musespark.chat.tokenizer import LLAMA4_TOKENS
from musespark.errors import InvalidImage, InvalidRequest

ASK = "<|header_start|>assistant<|header_end|>\n\n"


def user(text: str) -> Message:
    return Message("user", (Text(text),))


def rendered(*messages: Message, **options: Any) -> str:
    return spell(render(messages, LLAMA4_BYTES, **options).token_ids, LLAMA4_TOKENS)


CONVERSATIONS = {
    "a question": [{"role": "user", "content": "Hi"}],
    "a system message": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "history": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": " 3+3? "},
    ],
    "calls and results": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {"id": "1", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "n": [1, None, True]}}},
                {"id": "2", "function": {"name": "clock", "arguments": {}}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": 'It is "18C"'},
        {"role": "tool", "tool_call_id": "2", "content": "noon"},
        {"role": "assistant", "content": "18 degrees at noon."},
        {"role": "user", "content": "Thanks."},
    ],
}


def to_message(data: dict[str, Any]) -> Message:
    calls = tuple(
        ToolCall(call["id"], call["function"]["name"], json.dumps(call["function"]["arguments"]))
        for call in data.get("tool_calls", ())
    )
    return Message(data["role"], (Text(data["content"]),), tool_calls=calls, tool_call_id=data.get("tool_call_id"))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_are_written_as_published(name: str) -> None:
    conversation = CONVERSATIONS[name]
    (published,), _ = render_jinja_template(
        [conversation],
        chat_template=published_template.llama4(),
        add_generation_prompt=True,
        bos_token="<|begin_of_text|>",
    )
    assert rendered(*map(to_message, conversation)) == published


def test_a_prompt_to_the_letter() -> None:
    assert rendered(Message("system", (Text("Be brief."),)), user("Hi")) == (
        "<|begin_of_text|><|header_start|>system<|header_end|>\n\nBe brief.<|eot|>"
        "<|header_start|>user<|header_end|>\n\nHi<|eot|><|header_start|>assistant<|header_end|>\n\n"
    )


def image_text(rows: int, columns: int) -> str:
    """The layout as the reference describes it."""
    patches = "<|patch|>" * 144
    row = "<|tile_x_separator|>".join([patches] * columns) + "<|tile_y_separator|>"
    tiles = row * rows if rows * columns > 1 else ""
    return f"<|image_start|>{tiles}<|image|>{patches}<|image_end|>"


@pytest.mark.parametrize(("size", "grid"), [((300, 200), (1, 1)), ((672, 336), (1, 2)), ((600, 1000), (3, 2))])
def test_an_image_in_its_place(size: tuple[int, int], grid: tuple[int, int]) -> None:
    content = (Text("What is "), Image(encoded(picture(*size), "PNG")), Text("this?"))
    prompt = render([Message("user", content)], LLAMA4_BYTES)
    opening = "<|begin_of_text|><|header_start|>user<|header_end|>\n\nWhat is "
    assert spell(prompt.token_ids, LLAMA4_TOKENS) == f"{opening}{image_text(*grid)}this?<|eot|>{ASK}"
    patch = LLAMA4_BYTES.special("<|patch|>")
    rows = [i for start, end in prompt.image_spans for i in range(start, end)]
    assert rows == [i for i, token_id in enumerate(prompt.token_ids) if token_id == patch]
    assert [end - start for start, end in prompt.image_spans] == [144] * len(prompt.images)


def test_several_images_keep_their_order() -> None:
    wide, small = encoded(picture(672, 336), "PNG"), encoded(picture(20, 20), "PNG")
    prompt = render([Message("user", (Image(wide), Text("and"), Image(small)))], LLAMA4_BYTES)
    assert len(prompt.images) == len(prompt.image_spans) == 4
    assert image_text(1, 2) + "and" + image_text(1, 1) in spell(prompt.token_ids, LLAMA4_TOKENS)
    with pytest.raises(InvalidImage, match="not an image"):
        rendered(Message("user", (Image(b"hello"),)))


TOOLS = [
    Tool("get_weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}}),
    Tool("clock"),
]
SCHEMAS = (
    '{"name": "get_weather", "description": "The weather.", '
    '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}\n'
    '{"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}}'
)


def test_tools_come_in_the_first_system_message_once() -> None:
    system = Message("system", (Text("Be brief."),))
    text = rendered(system, user("Hi"), system, tools=TOOLS)
    assert text.count(SCHEMAS) == 1
    assert f"{SCHEMAS}\n\nBe brief.<|eot|><|header_start|>user" in text
    assert "<|header_start|>system<|header_end|>\n\nBe brief.<|eot|>" in text


def test_tools_without_a_system_message_make_one() -> None:
    text = rendered(user("Hi"), tools=TOOLS)
    assert text.startswith("<|begin_of_text|><|header_start|>system<|header_end|>\n\nYou have functions")
    assert text.endswith(f"{SCHEMAS}<|eot|><|header_start|>user<|header_end|>\n\nHi<|eot|>{ASK}")


def test_a_schema_that_is_not_json_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="JSON schema"):
        rendered(user("Hi"), tools=[Tool("f", "", {"a": float("nan")})])


@pytest.mark.parametrize("arguments", ["[1]", "{", '{"a": NaN}', "7"])
def test_arguments_that_are_not_an_object_are_written_as_they_are(arguments: str) -> None:
    text = rendered(Message("assistant", (), tool_calls=(ToolCall("call_7", "f", arguments),)))
    assert f'{{"name": "f", "parameters": {arguments}}}<|eot|>' in text


def test_nothing_that_people_write_becomes_a_control_token() -> None:
    def everything(text: str) -> list[int]:
        call = ToolCall(text, text, json.dumps({text: text}))
        messages = [
            Message("system", (Text(text),)),
            user(text),
            Message("assistant", (Text(text),), tool_calls=(call,)),
            Message("tool", (Text(text),), tool_call_id=text),
            Message("assistant", (Text(text),)),
        ]
        ids = render(messages, LLAMA4_BYTES, tools=[Tool(text, text, {text: text})]).token_ids
        return [i for i in ids if LLAMA4_BYTES.is_special(i)]

    frame = everything("x")
    for name in LLAMA4_TOKENS:
        assert everything(name) == frame


def test_no_messages_ask_at_once() -> None:
    assert render([], LLAMA4_BYTES).token_ids == read(f"<|begin_of_text|>{ASK}", LLAMA4_TOKENS)
