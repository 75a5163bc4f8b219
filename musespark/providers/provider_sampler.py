"""Answers of any provider as the `Sampler` of the evals room: greedy, several questions at a time."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from musespark.chat.messages import Message, Text, ToolCall
from musespark.evals.model_under_test import Question
from musespark.providers.base import (
    ChatRequest,
    ContentDelta,
    OfferedTool,
    Provider,
    ReasoningDelta,
    ToolCallDelta,
)


class ProviderSampler:
    """`loop` runs the provider; calls come from another thread or from where no loop runs."""

    def __init__(self, provider: Provider, loop: asyncio.Runner, *, concurrency: int = 16) -> None:
        self._provider = provider
        self._loop = loop
        self._concurrency = concurrency
        self._salt = secrets.token_bytes(16)

    def answers(self, questions: Sequence[Question], *, max_tokens: int) -> list[Message]:
        return self._loop.run(self._ask_all(questions, max_tokens))

    async def _ask_all(self, questions: Sequence[Question], max_tokens: int) -> list[Message]:
        places = asyncio.Semaphore(self._concurrency)

        async def ask(question: Question) -> Message:
            async with places:
                return await self._ask(question, max_tokens)

        return await asyncio.gather(*map(ask, questions))

    async def _ask(self, question: Question, max_tokens: int) -> Message:
        request = ChatRequest(
            id=f"eval-{secrets.token_hex(8)}",
            messages=question.messages,
            cache_salt=self._salt,
            max_tokens=max_tokens,
            temperature=0.0,
            tools=tuple(OfferedTool(tool) for tool in question.tools),
        )
        content, reasoning = "", ""
        calls: dict[int, ToolCall] = {}
        stream = await self._provider.chat(request)
        try:
            async for event in stream:
                if isinstance(event, ContentDelta):
                    content += event.text
                elif isinstance(event, ReasoningDelta):
                    reasoning += event.text
                elif isinstance(event, ToolCallDelta):
                    so_far = calls.get(event.call, ToolCall("", "", ""))
                    calls[event.call] = ToolCall(
                        event.id or so_far.id, event.name or so_far.name, so_far.arguments + event.arguments
                    )
        finally:
            await stream.aclose()
        return Message(
            "assistant",
            (Text(content),),
            reasoning=reasoning or None,
            tool_calls=tuple(calls[i] for i in sorted(calls)),
        )
