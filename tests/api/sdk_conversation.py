"""A scripted conversation through the official SDK, with strict validation of every response.

A script of its own, because two versions of the SDK can't live in one process: `test_sdk.py` runs it under each. Prints
one JSON object: scenario -> "ok", or what went wrong.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import openai
import pydantic
from PIL import Image

SCENARIOS: dict[str, Callable[[openai.OpenAI], None]] = {}


def scenario(function: Callable[[openai.OpenAI], None]) -> Callable[[openai.OpenAI], None]:
    SCENARIOS[function.__name__] = function
    return function


def ask(client: openai.OpenAI, text: Any, **fields: Any) -> Any:
    return client.chat.completions.create(model="talking", messages=[{"role": "user", "content": text}], **fields)


@scenario
def models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == client.models.retrieve("talking").id == "talking"


@scenario
def whole(client: openai.OpenAI) -> None:
    completion = ask(client, "think: hm; say: hello")
    [choice] = completion.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "hello", "stop")
    assert choice.message.reasoning_content == choice.message.reasoning == "hm"
    usage = completion.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens == 12
    assert usage.prompt_tokens_details.cached_tokens % 64 == 0
    assert completion.system_fingerprint == "fp_talking"


@scenario
def stream(client: openai.OpenAI) -> None:
    chunks = list(ask(client, "think: hm; say: hello", stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    *said, last = chunks
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in said)
    assert (last.choices, last.usage.completion_tokens_details.reasoning_tokens) == ([], 12)
    deltas = [chunk.choices[0].delta for chunk in said]
    assert "".join(delta.content or "" for delta in deltas) == "hello"
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "hm"
    assert [chunk.choices[0].finish_reason for chunk in said][-2:] == [None, "stop"]


@scenario
def image(client: openai.OpenAI) -> None:
    file = io.BytesIO()
    Image.new("RGB", (56, 28), "teal").save(file, "PNG")  # two cells of 28 pixels: two tokens
    url = {"url": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}", "detail": "auto"}
    content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "look"}]
    completion = ask(client, content)
    assert completion.choices[0].message.content == "I read 4 bytes and 2 image tokens."
    assert completion.usage.prompt_tokens_details.image_tokens == 2


@scenario
def several_choices(client: openai.OpenAI) -> None:
    completion = ask(client, "say: hi", n=2, temperature=1.0, seed=7)
    assert [choice.index for choice in completion.choices] == [0, 1]
    assert [choice.message.content for choice in completion.choices] == ["hi", "hi"]


@scenario
def logprobs(client: openai.OpenAI) -> None:
    tokens = ask(client, "say: hé", logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens) == "hé".encode()
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)
    chunks = ask(client, "say: hé", logprobs=True, top_logprobs=1, stream=True)
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [token.bytes for token in streamed] == [token.bytes for token in tokens]


@scenario
def stop(client: openai.OpenAI) -> None:
    [choice] = ask(client, "count", stop=["78", "xyz"], max_tokens=50).choices
    assert (choice.message.content, choice.finish_reason) == ("0123456", "stop")


@scenario
def length(client: openai.OpenAI) -> None:
    completion = ask(client, "count", max_completion_tokens=20)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 20


@scenario
def disconnect(client: openai.OpenAI) -> None:
    answer = ask(client, "count", stream=True)
    next(iter(answer))
    answer.close()
    assert ask(client, "say: still here").choices[0].message.content == "still here"


@scenario
def history(client: openai.OpenAI) -> None:
    """What the SDK gives back can be sent again as it is."""
    message = ask(client, "think: hm; say: hello").choices[0].message
    call = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "hi"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        message.model_dump(),
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "text", "text": " it up"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "hello"},
        {"role": "user", "content": "say: thanks"},
    ]
    completion = client.chat.completions.create(
        model="talking", messages=messages, user="someone", metadata={"run": "1"}
    )
    assert completion.choices[0].message.content == "thanks"


class Weather(pydantic.BaseModel):
    """Asks for the weather."""

    city: str
    days: int


CALL = (
    ' to=Weather<|message|><atem:function_calls>\n<atem:invoke name="Weather">\n<atem:parameter name="city">Rome'
    '</atem:parameter>\n<atem:parameter name="days">2</atem:parameter>\n</atem:invoke>\n</atem:function_calls>'
)
THOUGHT = " to=self<|message|>hm<|eom|><|start|>assistant"


@scenario
def tools(client: openai.OpenAI) -> None:
    """A round with a tool: the call, its result under its id, the answer."""
    tool = openai.pydantic_function_tool(Weather)
    completion = ask(client, f"write: {THOUGHT}{CALL}<|eom|><|start|>assistant{CALL}", tools=[tool], temperature=0)
    [choice] = completion.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.reasoning_content == "hm"
    calls = choice.message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Rome", "days": 2}] * 2
    results = [{"role": "tool", "tool_call_id": call.id, "content": "18"} for call in calls]
    messages = [{"role": "user", "content": "hi"}, choice.message, *results, {"role": "user", "content": "say: warm"}]
    answer = client.chat.completions.create(model="talking", messages=messages, tools=[tool])
    assert answer.choices[0].message.content == "warm"


@scenario
def tool_stream(client: openai.OpenAI) -> None:
    """The SDK's own accumulator of deltas understands ours."""
    with client.chat.completions.stream(
        model="talking",
        messages=[{"role": "user", "content": f"write: {THOUGHT}{CALL}"}],
        tools=[openai.pydantic_function_tool(Weather)],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
    ) as events:
        kinds = [event.type for event in events]
        completion = events.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert kinds.count("tool_calls.function.arguments.done") == 1
    [call] = completion.choices[0].message.tool_calls
    assert call.function.parsed_arguments == Weather(city="Rome", days=2)
    assert completion.choices[0].finish_reason == "tool_calls"


@scenario
def parsed(client: openai.OpenAI) -> None:
    completion = client.chat.completions.parse(
        model="talking",
        messages=[{"role": "user", "content": f'write: {THOUGHT} to=user<|message|>{{"city": "Rome", "days": 2}} and'}],
        response_format=Weather,
        temperature=0,
    )
    assert completion.choices[0].message.parsed == Weather(city="Rome", days=2)


def error_of(call: Callable[[], Any]) -> openai.APIStatusError:
    try:
        call()
    except openai.APIStatusError as error:
        return error
    raise AssertionError("this was accepted")


@scenario
def errors(client: openai.OpenAI) -> None:
    for fields, kind, code in [
        ({"temperature": 3}, openai.BadRequestError, "invalid_request"),
        ({"store": True}, openai.BadRequestError, "unsupported_field"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, openai.BadRequestError, "invalid_request"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}},
            openai.BadRequestError,
            "invalid_schema",
        ),
        ({"max_tokens": 100_000}, openai.BadRequestError, "context_length_exceeded"),
    ]:
        error = error_of(functools.partial(ask, client, "hi", **fields))
        assert (type(error), error.code) == (kind, code), error
    missing = error_of(
        lambda: client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": ""}])
    )
    assert (type(missing), missing.code) == (openai.NotFoundError, "model_not_found")
    refused = error_of(client.with_options(api_key="sk-muse-wrong").models.list)
    assert (type(refused), refused.code) == (openai.AuthenticationError, "malformed_api_key")


def main(base_url: str, key: str) -> None:
    outcomes = {"version": openai.__version__}
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, _strict_response_validation=True) as client:
        for name, run in SCENARIOS.items():
            try:
                run(client)
                outcomes[name] = "ok"
            except Exception:
                outcomes[name] = traceback.format_exc()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
