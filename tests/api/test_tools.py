"""Tool calls and schemas over HTTP, in OpenAI's wire format. The model writes what its user says, if a grammar lets it.

Scripts spell a turn of the Muse format; what the server must make of it is written here by hand, from OpenAI's
specification of chat completions.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.world import MODEL, World

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Asks the sky.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "clock"}},
]
AGAIN = "<|eom|><|start|>assistant"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"]}


def call(name: str, **parameters: str) -> str:
    """A call as the model writes it."""
    lines = [f'<atem:parameter name="{key}">{value}</atem:parameter>\n' for key, value in parameters.items()]
    invoke = f'<atem:invoke name="{name}">\n{"".join(lines)}</atem:invoke>'
    return f" to={name}<|message|><atem:function_calls>\n{invoke}\n</atem:function_calls>"


def written(world: World, script: str, **fields: Any) -> dict[str, Any]:
    """The choice of a model that would write `script`."""
    response = world.ask(f"write: {script}", temperature=0, **fields)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def streamed(world: World, script: str, **fields: Any) -> list[dict[str, Any]]:
    response = world.ask(f"write: {script}", temperature=0, stream=True, **fields)
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line)["choices"][0] for line in lines[:-1]]


def calls_of(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    calls = choice["message"].get("tool_calls", [])
    return [(made["function"]["name"], json.loads(made["function"]["arguments"])) for made in calls]


def test_parallel_calls_come_with_ids_and_arguments_and_no_content(world: World) -> None:
    thought = f" to=self<|message|>Two.{AGAIN}"
    choice = written(world, thought + call("weather", city="Rome", days="2") + AGAIN + call("clock"), tools=TOOLS)
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["content"], message["reasoning_content"]) == (None, "Two.")
    assert calls_of(choice) == [("weather", {"city": "Rome", "days": 2}), ("clock", {})]
    first, second = message["tool_calls"]
    assert first["type"] == second["type"] == "function"
    assert first["id"] != second["id"]


def test_a_stream_gives_each_call_its_index_id_and_name_first_and_then_pieces(world: World) -> None:
    chunks = streamed(world, call("weather", city="Rome") + AGAIN + call("clock"), tools=TOOLS)
    deltas = [part for chunk in chunks for part in chunk["delta"].get("tool_calls", [])]
    for index, (name, arguments) in enumerate([("weather", '{"city": "Rome"}'), ("clock", "{}")]):
        opening, *pieces = [delta for delta in deltas if delta["index"] == index]
        assert set(opening) == {"index", "id", "type", "function"}
        assert (opening["type"], opening["function"]) == ("function", {"name": name, "arguments": ""})
        assert all(set(piece) == {"index", "function"} and set(piece["function"]) == {"arguments"} for piece in pieces)
        assert "".join(piece["function"]["arguments"] for piece in pieces) == arguments
    assert [delta["index"] for delta in deltas] == sorted(delta["index"] for delta in deltas)
    assert [chunk["finish_reason"] for chunk in chunks][-2:] == [None, "tool_calls"]


def test_a_remark_before_a_call_is_content(world: World) -> None:
    choice = written(world, f" to=commentary<|message|>Let me look.{AGAIN}{call('clock')}", tools=TOOLS)
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Let me look.", "tool_calls")


def test_without_tools_a_call_is_text(world: World) -> None:
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = written(world, call("clock"), **fields)
        assert "tool_calls" not in choice["message"]
        assert choice["message"]["content"].startswith("<atem:function_calls>")
        assert choice["finish_reason"] == "stop"


def test_a_call_to_an_unknown_tool_is_shown_and_not_made(world: World) -> None:
    choice = written(world, call("rm", path="/"), tools=TOOLS)
    assert choice["finish_reason"] == "stop"
    assert '<atem:invoke name="rm">' in choice["message"]["content"]


def test_a_call_cut_off_by_length_keeps_what_was_written(world: World) -> None:
    script = call("weather", city="Rome")
    until = script.index("me</atem") - len("<|message|>") + 1  # tokens: a mark is one, any other character too
    choice = written(world, script, tools=TOOLS, max_tokens=until)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Ro'


def test_history_with_calls_and_results_goes_round(world: World) -> None:
    message = written(world, call("weather", city="Rome"), tools=TOOLS)["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "18 degrees"}
    messages = [{"role": "user", "content": "hi"}, message, result, {"role": "user", "content": "say: fine"}]
    response = world.post({"model": MODEL, "messages": messages, "tools": TOOLS})
    assert response.json()["choices"][0]["message"]["content"] == "fine"


def test_a_call_that_is_required_comes_whatever_the_model_would_say(world: World) -> None:
    fields = {"tools": TOOLS[1:], "tool_choice": "required", "parallel_tool_calls": False}
    choice = written(world, " to=user<|message|>No.", **fields)
    assert (calls_of(choice), choice["finish_reason"]) == ([("clock", {})], "tool_calls")


def test_a_named_tool_is_called_once_after_the_reasoning(world: World) -> None:
    script = f" to=self<|message|>Hm.{AGAIN}{call('weather', city='Rome')}{AGAIN}{call('weather', city='Oslo')}"
    named = {"type": "function", "function": {"name": "weather"}}
    choice = written(world, script, tools=TOOLS, tool_choice=named)
    assert calls_of(choice) == [("weather", {"city": "Rome"})]
    assert (choice["message"]["reasoning"], choice["finish_reason"]) == ("Hm.", "tool_calls")


def test_without_parallel_calls_the_first_is_the_last(world: World) -> None:
    script = call("clock") + AGAIN + call("weather", city="Rome")
    assert len(calls_of(written(world, script, tools=TOOLS))) == 2
    choice = written(world, script, tools=TOOLS, parallel_tool_calls=False)
    assert (calls_of(choice), choice["finish_reason"]) == ([("clock", {})], "tool_calls")
    answer = written(world, " to=user<|message|>Hello", tools=TOOLS, parallel_tool_calls=False)
    assert (answer["message"]["content"], answer["finish_reason"]) == ("Hello", "stop")


def test_a_strict_tool_is_held_to_its_schema_and_an_answer_stays_free(world: World) -> None:
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]  # type: ignore[dict-item]
    script = call("weather", city="Rome", mood="bad")
    assert calls_of(written(world, script, tools=TOOLS))[0][1] == {"city": "Rome", "mood": "bad"}
    [(_, arguments)] = calls_of(written(world, script, tools=strict, parallel_tool_calls=False))
    assert arguments["city"] == "Rome"
    assert set(arguments) <= {"city", "days"}
    answer = written(world, " to=user<|message|>{Hello", tools=strict)
    assert (answer["message"]["content"], answer["finish_reason"]) == ("{Hello", "stop")


def test_an_answer_keeps_to_its_schema_and_the_reasoning_stays_free(world: World) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    script = f' to=self<|message|>{{"n": Hm{AGAIN} to=user<|message|>{{"n": 7}} and more'
    choice = written(world, script, response_format=response_format)
    assert choice["message"]["reasoning"] == '{"n": Hm'
    assert (json.loads(choice["message"]["content"]), choice["finish_reason"]) == ({"n": 7}, "stop")


def test_a_json_object_is_an_object(world: World) -> None:
    response_format = {"type": "json_object"}
    choice = written(world, ' to=user<|message|>{"a": [1, null]}, he said', response_format=response_format)
    assert json.loads(choice["message"]["content"]) == {"a": [1, None]}


def test_json_cut_off_by_length_is_what_was_written(world: World) -> None:
    script = ' to=user<|message|>{"a": "bcdef"}'
    choice = written(world, script, response_format={"type": "json_object"}, max_tokens=len(' to=user{"a": "bc') + 1)
    assert (choice["message"]["content"], choice["finish_reason"]) == ('{"a": "bc', "length")


def test_a_schema_beside_tools_binds_the_answer_and_leaves_calls_free(world: World) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    fields: dict[str, Any] = {"tools": TOOLS, "response_format": response_format}
    assert calls_of(written(world, call("weather", town="Rome"), **fields)) == [("weather", {"town": "Rome"})]
    assert written(world, ' to=user<|message|>{"n": 1}', **fields)["message"]["content"] == '{"n": 1}'


def test_the_grammar_goes_together_with_n_logprobs_seed_and_stop(world: World) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    fields = {"n": 3, "logprobs": True, "top_logprobs": 2, "seed": 5, "stop": ["9"], "temperature": 2, "top_k": 50}
    body = {"response_format": response_format, "max_tokens": 400, **fields}
    script = 'write:  to=user<|message|>{"n": 4}'
    choices = world.ask(script, **body).json()["choices"]
    assert choices == world.ask(script, **body).json()["choices"]
    for choice in choices:
        text = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"]).decode()
        assert text == choice["message"]["content"]
        assert choice["finish_reason"] == "length" or json.loads(text)["n"] == 4


def test_neighbours_in_the_batch_are_not_touched(world: World) -> None:
    alone = world.ask("count", max_tokens=200, temperature=0).json()["choices"]
    script = f' to=user<|message|>{{"a": "{"x" * 100}"}}'
    with world.client.stream(
        "POST",
        "/v1/chat/completions",
        json={
            "model": MODEL,
            "messages": [{"role": "user", "content": f"write: {script}"}],
            "response_format": {"type": "json_object"},
            "temperature": 0,
            "stream": True,
        },
    ) as constrained:
        beside = world.ask("count", max_tokens=200, temperature=0).json()["choices"]
        constrained.read()
    assert alone == beside


def test_a_cancelled_constrained_stream_frees_its_pages(world: World) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "count"}], "stream": True}
    with world.client.stream("POST", "/v1/chat/completions", json={**body, "response_format": {"type": "json_object"}}):
        pass  # closed before it is read
    world.wait_until_idle()


BAD_SCHEMAS: list[tuple[Any, str]] = [
    ({"type": "object", "properties": {"a": {"not": {}}}}, ".properties.a.not"),
    ({"type": "object", "x-guidance": {"lenient": True}}, ".x-guidance"),
    ({"if": {}, "then": {}}, ".if"),
    ({"type": "array", "uniqueItems": True}, ".uniqueItems"),
    ({"type": "object", "properties": {"a": {"$ref": "https://example.com/schema"}}}, ".properties.a.$ref"),
    ({"$ref": "#/$defs/none"}, ".$ref"),
    ({"type": "thing"}, ""),
    ({"type": "string", "pattern": "[a"}, ""),
    ({"type": "string", "format": "shoe-size"}, ""),
    ({"type": "integer", "minimum": 5, "maximum": 3}, ""),
    ({"$ref": "#"}, ""),
]


@pytest.mark.parametrize(("schema", "place"), BAD_SCHEMAS)
def test_a_schema_that_can_not_be_held_to_is_refused_by_its_keyword(world: World, schema: Any, place: str) -> None:
    response = world.ask("hi", response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_schema")
    assert error["param"] == f"response_format.json_schema.schema{place}"


def test_a_tools_schema_counts_only_where_it_is_held_to(world: World) -> None:
    loose = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "if": {}}}}]
    assert world.ask("say: hi", tools=loose).status_code == 200
    for fields in (
        {"tool_choice": "required"},
        {"tools": [{**loose[0], "function": {**loose[0]["function"], "strict": True}}]},
    ):  # type: ignore[dict-item]
        error = world.ask("say: hi", **({"tools": loose} | fields)).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_schema", "tools.0.function.parameters.if")


def test_other_tools_that_are_refused(world: World) -> None:
    twice = world.ask("hi", tools=[TOOLS[1], TOOLS[1]]).json()["error"]
    assert (twice["code"], twice["param"]) == ("invalid_request", "tools")
    reserved = [{"type": "function", "function": {"name": "user"}}]
    assert world.ask("hi", tools=reserved).json()["error"]["param"] == "tools"
    endless = world.ask("hi", tools=TOOLS, tool_choice="required", ignore_eos=True).json()["error"]
    assert (endless["code"], endless["param"]) == ("invalid_request", "ignore_eos")
