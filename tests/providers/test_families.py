"""Calls and schemas of each family, through the provider and a real engine; the model says what it is told.

The turns are written by hand in each family's notation, and so is what a client must see of them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from musespark.chat.checkpoint_template import CheckpointTemplate
from musespark.chat.formats import MODEL_TYPES, ChatFormat, make_format
from musespark.chat.messages import Image, Message, Text, Tool, ToolCall
from musespark.chat.tokenizer import LLAMA4_TOKENS, Tokenizer
from musespark.engine.engine import Engine
from musespark.engine.request import SampledToken
from musespark.engine.service import EngineService
from musespark.errors import InvalidImage, InvalidRequest
from musespark.model.generation import GenerationDefaults
from musespark.providers.base import (
    AnswerSchema,
    ChatRequest,
    ContentDelta,
    Finished,
    ModelInfo,
    OfferedTool,
    ReasoningDelta,
    ToolCallDelta,
)
from musespark.providers.chat_output import Called, ChatOutput
from musespark.providers.local import LocalProvider
from tests.chat.image_samples import encoded, picture
from tests.fakes import ScriptedRunner, toy_config

MUSE = ("muse_spark", "muse_glimmer")
BYTES = {
    name: Tokenizer.bytes_only(LLAMA4_TOKENS) if name == "llama4" else Tokenizer.bytes_only() for name in MODEL_TYPES
}
FORMATS: dict[str, ChatFormat] = {name: make_format(name, tokenizer) for name, tokenizer in BYTES.items()}
WEATHER = Tool(
    "weather",
    "Asks.",
    {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}, "required": ["city"]},
)
CLOCK = Tool("clock")
TOOLS = (OfferedTool(WEATHER), OfferedTool(CLOCK))
QUESTION = (Message("user", (Text("hi"),)),)


def calls(name: str, *made: tuple[str, dict[str, Any]]) -> str:
    """Several calls in a family's notation."""
    if name == "llama4":
        return "".join(f'{{"name": "{called}", "parameters": {json.dumps(arguments)}}}' for called, arguments in made)
    messages = []
    for called, arguments in made:
        lines = "".join(f'<atem:parameter name="{k}">{v}</atem:parameter>\n' for k, v in arguments.items())
        invoke = f'<atem:invoke name="{called}">\n{lines}</atem:invoke>'
        messages.append(f" to={called}<|message|><atem:function_calls>\n{invoke}\n</atem:function_calls>")
    return "<|eom|><|start|>assistant".join(messages)


def spelled(name: str, text: str) -> list[int]:
    tokenizer = BYTES[name]
    parts = re.split(r"(<\|\w+\|>)", text)
    return [i for k, part in enumerate(parts) for i in ([tokenizer.special(part)] if k % 2 else tokenizer.encode(part))]


@dataclass
class Seen:
    """What a client saw of one choice."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    reason: str | None = None

    def add(self, event: object) -> None:
        if isinstance(event, ContentDelta):
            self.content += event.text
        elif isinstance(event, ReasoningDelta):
            self.reasoning += event.text
        elif isinstance(event, ToolCallDelta):
            if event.id is not None:
                assert event.call == len(self.calls)
                self.ids.append(event.id)
                self.calls.append((event.name or "", ""))
            called, arguments = self.calls[event.call]
            self.calls[event.call] = (called, arguments + event.arguments)
        elif isinstance(event, Finished):
            self.reason = event.reason


def with_model(name: str, script: str, test: Callable[[LocalProvider, list[int]], Any], *, reads_images: bool = True):
    """Run `test` beside a model that writes `script`; the list holds where its answer begins, for the test to set."""
    said = [*spelled(name, script), BYTES[name].special("<|eot|>")]
    start = [0]
    config = toy_config(max_position_embeddings=4096)
    runner = ScriptedRunner(
        lambda position: said[min(max(position - start[0], 0), len(said) - 1)],
        config=config,  # type: ignore[arg-type]
        num_full_pages=128,
        num_sliding_pages=64,
    )
    unsayable = {*(BYTES[name].special_ids - FORMATS[name].answer_token_ids), *range(BYTES[name].vocab_size, 320)}

    async def run() -> Any:
        service = EngineService(Engine(runner, suppressed_token_ids=unsayable))
        provider = LocalProvider(
            service,
            BYTES[name],
            FORMATS[name],
            GenerationDefaults((BYTES[name].special("<|eot|>"),), temperature=0.0),
            ModelInfo("toy", 0, "tests", "fp_toy"),
            reads_images=reads_images,
        )
        try:
            return await test(provider, start)
        finally:
            await service.close(0.0)
            provider.close()

    return asyncio.run(run())


def answer(name: str, script: str, **fields: Any) -> Seen:
    request = ChatRequest(**({"id": "r", "messages": QUESTION, "cache_salt": b"", "tools": TOOLS} | fields))

    async def test(provider: LocalProvider, start: list[int]) -> Seen:
        tools = [offered.tool for offered in request.tools]
        start[0] = len(FORMATS[name].render(request.messages, tools=tools).token_ids) - 1
        seen = Seen()
        async for event in await provider.chat(request):
            seen.add(event)
        return seen

    return with_model(name, script, test)


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_parallel_calls(name: str) -> None:
    seen = answer(name, calls(name, ("weather", {"city": "Rome", "n": 2}), ("clock", {})))
    assert [(called, json.loads(arguments)) for called, arguments in seen.calls] == [
        ("weather", {"city": "Rome", "n": 2}),
        ("clock", {}),
    ]
    assert len(set(seen.ids)) == 2
    assert (seen.content, seen.reason) == ("", "tool_calls")


@pytest.mark.parametrize("name", MUSE)
def test_reasoning_comes_before_calls(name: str) -> None:
    thought = " to=self<|message|>Look up.<|eom|><|start|>assistant"
    seen = answer(name, thought + calls(name, ("clock", {})))
    assert (seen.reasoning, seen.calls, seen.reason) == ("Look up.", [("clock", "{}")], "tool_calls")


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_a_named_tool_is_called_whatever_the_model_would_say(name: str) -> None:
    script = "Hello" if name == "llama4" else " to=user<|message|>Hello"
    seen = answer(name, script, tool_choice="required", only_tool="clock")
    assert (seen.calls, seen.reason) == ([("clock", "{}")], "tool_calls")


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_an_answer_of_a_schema(name: str) -> None:
    frame = "" if name == "llama4" else " to=user<|message|>"
    schema = AnswerSchema({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}, "f")
    seen = answer(name, f'{frame}{{"a": true}} and so on', answer_schema=schema, tools=())
    assert (json.loads(seen.content), seen.reason) == ({"a": True}, "stop")
    if name == "llama4":
        with pytest.raises(InvalidRequest, match="calls are JSON, and so would be its answer") as caught:
            answer(name, "x", answer_schema=schema)
        assert caught.value.param == "response_format"


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_a_call_to_no_tool_is_shown_as_it_was_written(name: str) -> None:
    seen = answer(name, calls(name, ("rm", {"path": "x"})))
    assert "rm" in seen.content
    assert (seen.calls, seen.reason) == ([], "stop")


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_results_go_back_under_the_ids_of_their_calls(name: str) -> None:
    history = (
        *QUESTION,
        Message(
            "assistant", (), tool_calls=(ToolCall("c1", "clock", "{}"), ToolCall("c2", "weather", '{"city": "R"}'))
        ),
        Message("tool", (Text("noon"),), tool_call_id="c1"),
        Message("tool", (Text("rain"),), tool_call_id="c2"),
    )
    frame = "" if name == "llama4" else " to=user<|message|>"
    seen = answer(name, f"{frame}At noon it rains.", messages=history)
    assert (seen.content, seen.reason) == ("At noon it rains.", "stop")


def output(name: str) -> ChatOutput:
    return ChatOutput(
        0,
        parser=FORMATS[name].parser(tools=[WEATHER, CLOCK]),
        tokenizer=BYTES[name],
        end_ids=FORMATS[name].stop_token_ids,
        stop=(),
        logprobs=True,
    )


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_a_turn_cut_off_at_any_token_gives_a_beginning_of_the_whole(name: str) -> None:
    """What is said is never taken back, and half a call is never said to be whole."""
    made = ("weather", {"city": 'R"o<m>', "n": 12}), ("clock", {}), ("weather", {"city": ""})
    tokens = spelled(name, calls(name, *made))
    growing, seen = output(name), Seen()
    beginnings = []
    for cut, token in enumerate(tokens):
        growing.push(SampledToken(token, 0.0))
        for event in growing.take():
            seen.add(event)
        beginnings.append(list(seen.calls))
        cut_off = output(name)
        for earlier in tokens[:cut]:
            cut_off.push(SampledToken(earlier, 0.0))
        cut_off.finish(None)
        assert not any(isinstance(event, Called) for event in cut_off.take())
    growing.finish(BYTES[name].special("<|eot|>"))
    events = growing.take()
    assert Called(0) in events
    for event in events:
        seen.add(event)
    assert [(called, json.loads(arguments)) for called, arguments in seen.calls] == list(made)
    for beginning in beginnings:
        for (part_name, part_arguments), (whole_name, whole_arguments) in zip(beginning, seen.calls, strict=False):
            assert part_name == whole_name
            assert whole_arguments.startswith(part_arguments)


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_an_effort_that_the_family_has_not_is_refused(name: str) -> None:
    for effort in ("extreme", "high" if name == "llama4" else "none"):
        with pytest.raises(InvalidRequest) as caught:
            answer(name, "x", reasoning_effort=effort, tools=())
        assert caught.value.param == "reasoning_effort"


def test_a_model_without_a_tower_refuses_images() -> None:
    image = Message("user", (Text("look"), Image(encoded(picture(28, 28), "PNG"))))
    request = ChatRequest(id="r", messages=(*QUESTION, image), cache_salt=b"")

    async def test(provider: LocalProvider, start: list[int]) -> None:
        with pytest.raises(InvalidImage, match="reads text only") as caught:
            await provider.chat(request)
        assert caught.value.param == "messages.1.content.1"

    with_model("muse_spark", "x", test, reads_images=False)


TEMPLATE = (
    "<|begin_of_text|>{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
    "{% if m.content == 'bomb' %}{{ 'x' * 9000000 }}{% endif %}<|eot|>{% endfor %}<|start|>assistant"
)


def test_a_template_that_is_stopped_at_a_limit_is_the_conversations_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = BYTES["muse_spark"]
    template = CheckpointTemplate(TEMPLATE, "the template", tokenizer, placeholder="<|patch|>")
    monkeypatch.setitem(FORMATS, "muse_spark", make_format("muse_spark", tokenizer, template=template))

    async def test(provider: LocalProvider, start: list[int]) -> None:
        for text in ("bomb", "say nothing"):
            request = ChatRequest(id=text, messages=(Message("user", (Text(text),)),), cache_salt=b"", max_tokens=5)
            if text == "bomb":
                with pytest.raises(InvalidRequest, match="stopped at a limit") as caught:
                    await provider.chat(request)
                assert (caught.value.code, caught.value.param) == ("invalid_request", "messages")
            else:
                assert [event async for event in await provider.chat(request)]

    with_model("muse_spark", "x", test)


def test_tools_are_counted_and_measured() -> None:
    def refusal(*tools: OfferedTool) -> InvalidRequest:
        with pytest.raises(InvalidRequest) as caught:
            answer("llama4", "x", tools=tools)
        return caught.value

    def heavy(num_bytes: int, index: int) -> OfferedTool:
        frame = len(json.dumps({"title": ""}))
        return OfferedTool(Tool(f"f{index}", "", {"title": "x" * (num_bytes - frame)}), field=f"tools.{index}")

    assert "129 tools" in refusal(*(OfferedTool(Tool(f"f{i}")) for i in range(129))).message
    assert "two tools are named" in refusal(TOOLS[0], TOOLS[0]).message
    assert refusal(heavy(65_537, 0)).param == "tools.0"
    assert refusal(*(heavy(65_536, i) for i in range(4)), heavy(20, 4)).code == "invalid_schema"
    # 262,144 bytes are as many as may be; here they don't fit the context, and neither do many repeated by messages.
    assert refusal(*(heavy(65_536, i) for i in range(4))).code == "context_length_exceeded"
    systems = tuple(Message("system", (Text("s"),)) for _ in range(400))
    with pytest.raises(InvalidRequest, match="the texts have"):
        answer("muse_spark", "x", messages=systems)
