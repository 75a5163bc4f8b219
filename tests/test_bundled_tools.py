"""Tools and schemas with the model in the box, which was trained with none: by grammar its calls and JSON are valid.

A live server and the official SDK, with what its users write: pydantic models, `parse`, and a round with a tool.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

MUSESPARK = Path(sys.executable).with_name("musespark")
MODEL = "muse-spark-nano"
ASK: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]


class Place(BaseModel):
    kind: Literal["city", "river", "hill"]
    stars: int = Field(ge=0, le=5)
    open: bool
    note: str = Field(max_length=12)


class Weather(BaseModel):
    """Asks for the weather."""

    city: Literal["Rome", "Oslo"]
    days: int = Field(ge=1, le=9)
    unit: Literal["C", "F"] | None


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    state = tmp_path_factory.mktemp("state")
    command = [MUSESPARK, "serve", "--port", "0", "--state-dir", state]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        banner = ""
        while "curl" not in banner:
            line = process.stdout.readline()
            assert line, f"the server ended: {banner}"
            banner += line
        url, key = re.search(r"http://\S+/v1", banner), re.search(r"sk-muse-\w+", banner)
        assert url
        assert key
        with openai.OpenAI(base_url=url[0], api_key=key[0], max_retries=0, _strict_response_validation=True) as client:
            yield client
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.parametrize("seed", range(2))
def test_parse_gives_a_model_of_the_answer(client: openai.OpenAI, seed: int) -> None:
    completion = client.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Place, seed=seed, temperature=1.5, max_completion_tokens=800
    )
    [choice] = completion.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Place)


@pytest.mark.parametrize("seed", range(2))
def test_a_required_call_has_arguments_of_the_schema(client: openai.OpenAI, seed: int) -> None:
    completion = client.chat.completions.parse(
        model=MODEL,
        messages=ASK,
        tools=[openai.pydantic_function_tool(Weather)],
        tool_choice="required",
        parallel_tool_calls=False,
        seed=seed,
        temperature=1.0,
        max_completion_tokens=800,
    )
    [choice] = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)


def test_a_streamed_call_and_its_result_go_round(client: openai.OpenAI) -> None:
    tool: Any = openai.pydantic_function_tool(Weather)
    named: Any = {"type": "function", "function": {"name": "Weather"}}
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, tools=[tool], tool_choice=named, temperature=0, max_completion_tokens=800
    ) as stream:
        kinds = {event.type for event in stream}
        completion = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    message = completion.choices[0].message
    assert message.tool_calls is not None
    [call] = message.tool_calls
    assert Weather.model_validate(json.loads(call.function.arguments))
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[  # type: ignore[list-item]
            *ASK,
            message,  # as the SDK gives it, with its own fields
            {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"},
        ],
        tools=[tool],
        max_completion_tokens=20,
    )
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_an_object_is_json_even_from_a_model_that_knows_none(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        response_format={"type": "json_object"},
        temperature=0,
        max_completion_tokens=1000,
    )
    choice = answer.choices[0]
    assert choice.message.content is not None
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.message.content.startswith("{")
