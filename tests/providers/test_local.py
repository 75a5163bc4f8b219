"""The local provider over a real engine: what it renders, what it refuses, what it reports."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from musespark.chat import templates
from musespark.chat.messages import Image, Message, Text, ToolCall
from musespark.engine.request import Usage
from musespark.engine.service import EngineService
from musespark.errors import ContextTooLong, InvalidImage, InvalidRequest, Overloaded, ShuttingDown
from musespark.providers.base import ChatEvent, ChatRequest, ContentDelta, Finished, ReasoningDelta
from musespark.providers.local import RENDER_THREADS, LocalProvider
from tests.chat.image_samples import encoded, picture, png_header
from tests.providers.talking import EOT, TOKENIZER, TalkingRunner, talking_engine, talking_provider


def conversation(text: str, *images: bytes, **fields: Any) -> ChatRequest:
    content = (*(Image(data) for data in images), Text(text))
    defaults = {"id": "r1", "messages": (Message("user", content),), "cache_salt": b"salt"}
    return ChatRequest(**(defaults | fields))


def with_provider(
    test: Callable[[LocalProvider], Awaitable[None]], runner: TalkingRunner | None = None, **engine: int
) -> None:
    """Run `test` with a provider; afterwards every page must be free again."""
    runner = runner or TalkingRunner()

    async def run() -> None:
        own_engine = talking_engine(runner, **engine)
        service = EngineService(own_engine)
        provider = talking_provider(service)
        try:
            await test(provider)
        finally:
            runner.unblocked.set()
            await service.close(0.0)
            provider.close()
        stats = own_engine.stats()
        assert stats.full_pages.used == stats.sliding_pages.used == 0
        assert runner.closed

    asyncio.run(run())


async def everything(provider: LocalProvider, request: ChatRequest) -> list[ChatEvent]:
    return [event async for event in await provider.chat(request)]


def content(events: list[ChatEvent], index: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, ContentDelta) and event.index == index)


def test_an_answer_is_reasoning_content_finish_and_usage() -> None:
    async def test(provider: LocalProvider) -> None:
        *deltas, finished, usage = await everything(provider, conversation("think: hm; say: hello"))
        assert content(deltas) == "hello"
        assert "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)) == "hm"
        assert finished == Finished(0, "stop")
        assert isinstance(usage, Usage)
        # header, mark, thought, end; then start, speaker, header, mark, answer, end
        assert usage.reasoning_tokens == 8 + 1 + 2 + 1
        assert usage.completion_tokens == usage.reasoning_tokens + 1 + 9 + 8 + 1 + 5 + 1

    with_provider(test)


def test_choices_are_told_apart_by_their_index() -> None:
    async def test(provider: LocalProvider) -> None:
        events = await everything(provider, conversation("say: hi", n=3))
        assert [content(events, index) for index in range(3)] == ["hi"] * 3
        assert {event.index for event in events if isinstance(event, Finished)} == {0, 1, 2}

    with_provider(test)


def test_an_image_becomes_prompt_rows_that_are_counted() -> None:
    async def test(provider: LocalProvider) -> None:
        events = await everything(provider, conversation("look", encoded(picture(56, 84), "PNG")))
        assert content(events) == "I read 4 bytes and 6 image tokens."
        usage = events[-1]
        assert isinstance(usage, Usage)
        assert usage.image_tokens == 2 * 3

    with_provider(test)


def test_images_that_no_context_holds_are_refused_before_they_are_decoded() -> None:
    async def test(provider: LocalProvider) -> None:
        only_headers = png_header(2800, 2800)  # each asks for the most rows, 4,096; there is nothing to decode
        with pytest.raises(ContextTooLong, match=r"the images alone take 4,098 tokens, this model takes 4,096"):
            await provider.chat(conversation("look", only_headers))

    with_provider(test)


@pytest.mark.parametrize("bad", [b"not an image", encoded(picture(200, 200), "PNG")[:-3000]], ids=["header", "pixels"])
def test_a_bad_image_is_named_by_its_place(bad: bytes) -> None:
    async def test(provider: LocalProvider) -> None:
        good = Image(encoded(picture(28, 28), "PNG"))
        messages = (Message("user", (good,)), Message("user", (Text("and"), good, Image(bad), good)))
        with pytest.raises(InvalidImage) as caught:
            await provider.chat(conversation("", messages=messages))
        assert caught.value.param == "messages.1.content.2"

    with_provider(test)


def test_max_tokens_defaults_to_the_room_that_is_left() -> None:
    async def test(provider: LocalProvider) -> None:
        events = await everything(provider, conversation("count"))
        usage = events[-1]
        assert isinstance(usage, Usage)
        assert events[-2] == Finished(0, "length")
        assert usage.prompt_tokens + usage.completion_tokens == 1024

    with_provider(test, TalkingRunner(num_full_pages=16))


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers() -> None:
    async def test(provider: LocalProvider) -> None:
        with pytest.raises(ContextTooLong, match=r"the prompt has 4,\d{3} tokens; this model takes 4,096, one of"):
            await provider.chat(conversation("x" * 4095))

    with_provider(test)


def test_texts_that_no_context_holds_are_refused_before_they_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def render(*_: object, **__: object) -> None:
        raise AssertionError("this takes a second for each megabyte")

    async def test(provider: LocalProvider) -> None:
        monkeypatch.setattr(templates, "render", render)
        call = ToolCall("c", "f", "\\u0041" * 4096)  # an escape is one character of the prompt
        for long in (
            [Message(role, (Text("é" * 2048),)) for role in ("system", "user")],
            [Message("assistant", (Text("x"),), reasoning="é" * 4095)],
            [Message("assistant", (), tool_calls=(call,))],
            [Message("tool", (Text("é" * 4096),), tool_call_id="c")],
        ):
            with pytest.raises(ContextTooLong, match=r"4,096 characters, .* at least 4,096 tokens; .* 4,096") as caught:
                await provider.chat(conversation("", messages=tuple(long)))
            assert caught.value.param == "messages"

    with_provider(test)


def test_a_short_text_does_not_wait_for_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    real_render = templates.render
    monkeypatch.setattr("musespark.providers.local.SHORT_TEXT", 100)

    def render(messages: tuple[Message, ...], *arguments: object, **named: object) -> object:
        if len(messages[0].content[-1].text) > 100:  # type: ignore[union-attr]
            assert gate.wait(10)
        return real_render(messages, *arguments, **named)  # type: ignore[arg-type]

    async def test(provider: LocalProvider) -> None:
        monkeypatch.setattr(templates, "render", render)
        long = [
            asyncio.create_task(everything(provider, conversation("x" * 101, id=f"long{i}")))
            for i in range(2 * RENDER_THREADS)
        ]
        await asyncio.sleep(0.05)
        assert content(await everything(provider, conversation("say: hi"))) == "hi"
        gate.set()
        assert {content(events) for events in await asyncio.gather(*long)} == {"I read 101 bytes and 0 image tokens."}

    with_provider(test)


def test_wrong_settings_are_refused_before_anything_is_decoded() -> None:
    async def test(provider: LocalProvider) -> None:
        for fields, param in [
            ({"temperature": 3.0}, "temperature"),
            ({"logprobs": 21}, "logprobs"),
            ({"stop": ("",)}, "stop"),
            ({"reasoning_effort": "none"}, "reasoning_effort"),
            ({"logit_bias": {320: 1.0}}, "logit_bias"),
            ({"n": 17}, "n"),
            ({"stop_token_ids": frozenset({TOKENIZER.vocab_size})}, "stop_token_ids"),
        ]:
            with pytest.raises(InvalidRequest) as caught:
                await provider.chat(conversation("hi", **fields))  # type: ignore[arg-type]
            assert caught.value.param == param

    with_provider(test)


def test_ignore_eos_goes_on_but_the_clients_stop_token_still_stops() -> None:
    async def test(provider: LocalProvider) -> None:
        events = await everything(provider, conversation("say: hi", ignore_eos=True, max_tokens=40))
        assert events[-2] == Finished(0, "length")
        stop = frozenset(TOKENIZER.encode("i"))
        events = await everything(
            provider, conversation("say: hi", ignore_eos=True, max_tokens=40, stop_token_ids=stop)
        )
        assert events[-2] == Finished(0, "stop")
        assert content(events) == "h"

    with_provider(test)


def test_logit_bias_changes_the_answer() -> None:
    async def test(provider: LocalProvider) -> None:
        events = await everything(provider, conversation("count", logit_bias={EOT: 100.0}, max_tokens=20))
        usage = events[-1]
        assert isinstance(usage, Usage)
        assert usage.completion_tokens == 1

    with_provider(test)


def test_a_prefix_is_found_again_under_the_same_salt_only() -> None:
    async def test(provider: LocalProvider) -> None:
        async def cached(salt: bytes) -> int:
            usage = (await everything(provider, conversation("say: hi " + "x" * 200, cache_salt=salt)))[-1]
            assert isinstance(usage, Usage)
            return usage.cached_tokens

        assert [await cached(salt) for salt in (b"a", b"b", b"a")] == [0, 0, 320]

    with_provider(test)


def test_closing_a_stream_frees_its_pages_and_tells_the_usage() -> None:
    async def test(provider: LocalProvider) -> None:
        stream = await provider.chat(conversation("count"))
        await anext(stream)
        assert stream.usage is None
        await stream.aclose()
        assert stream.usage is not None
        assert stream.usage.completion_tokens >= 1

    with_provider(test)


def test_a_caller_who_gives_up_in_the_queue_withdraws_the_request() -> None:
    async def test(provider: LocalProvider) -> None:
        waiting = asyncio.create_task(provider.chat(conversation("count")))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with_provider(test)


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    runner = TalkingRunner()

    async def test(provider: LocalProvider) -> None:
        runner.unblocked.clear()
        tasks = [asyncio.create_task(provider.chat(conversation("count", id=f"r{i}"))) for i in range(6)]
        await asyncio.sleep(0.1)
        runner.unblocked.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
        assert refused
        assert all(error.retry_after_ms >= 100 for error in refused)
        for outcome in outcomes:
            if not isinstance(outcome, BaseException):
                await outcome.aclose()

    with_provider(test, runner, max_running=1, max_waiting=1)


def test_an_admitted_request_no_longer_holds_what_was_sent() -> None:
    """The API counts the bytes of a request only until it is admitted; an answer may take minutes after that."""

    async def test(provider: LocalProvider) -> None:
        stream = await provider.chat(conversation("count"))
        await anext(stream)
        gc.collect()
        assert not any(type(held) is ChatRequest for held in gc.get_objects())
        await stream.aclose()

    with_provider(test)


def test_a_closed_engine_refuses_and_ends_what_runs() -> None:
    async def run() -> None:
        service = EngineService(talking_engine(TalkingRunner(delay_s=0.01)))
        provider = talking_provider(service)
        stream = await provider.chat(conversation("count"))
        await service.close(0.0)
        with pytest.raises(ShuttingDown):
            [event async for event in stream]
        assert not provider.ready
        with pytest.raises(ShuttingDown):
            await provider.chat(conversation("count"))
        provider.close()
        with pytest.raises(ShuttingDown):
            await provider.chat(conversation("count"))

    asyncio.run(run())


def test_closing_answers_also_those_whose_prompt_is_not_rendered_yet() -> None:
    gate = threading.Event()

    class Slow(tuple[Message, ...]):
        """Takes as long to read as a large picture."""

        def __iter__(self) -> Iterator[Message]:
            assert gate.wait(10), "closing must not wait"
            return iter([Message("user", (Text("say: hi"),))])

    async def run() -> None:
        service = EngineService(talking_engine(TalkingRunner()))
        provider = talking_provider(service)
        num_requests = 2 * RENDER_THREADS
        requests = [conversation("", id=f"r{i}", messages=Slow()) for i in range(num_requests)]
        tasks = [asyncio.create_task(provider.chat(request)) for request in requests]
        await asyncio.sleep(0.05)
        await service.close(0.0)
        provider.close()
        gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ShuttingDown] * num_requests

    asyncio.run(run())
