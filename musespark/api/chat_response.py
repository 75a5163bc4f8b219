"""A provider's events in OpenAI's words: one `chat.completion`, or a stream of `chat.completion.chunk`.

Reasoning is not in OpenAI's protocol. It is sent under both names that clients look for, `reasoning_content` (DeepSeek,
llama.cpp) and `reasoning` (vLLM), with the same text.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from musespark.engine.request import AllowanceEvent, Timing, Usage
from musespark.providers.base import (
    ChatEvent,
    ContentDelta,
    Finished,
    ModelInfo,
    ReasoningDelta,
    TokenLogprob,
    ToolCallDelta,
)


class Bill(Protocol):
    """What the answer says of money."""

    @property
    def stopped_by(self) -> tuple[str, str] | None:
        """Code and message of the limit that ended the answer."""
        ...

    def billing(self) -> dict[str, Any] | None:
        """Our own part of the usage object; None before it is known."""
        ...


def usage_object(usage: Usage, bill: Bill | None = None) -> dict[str, Any]:
    """`image_tokens` is not in OpenAI's prompt details of old, but in its current specification; `billing` is ours."""
    billing = None if bill is None else bill.billing()
    result = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "text_tokens": usage.prompt_tokens - usage.image_tokens,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens, "audio_tokens": 0},
    }
    return result if billing is None else result | {"billing": billing}


def timings_object(timing: Timing) -> dict[str, float | None]:
    """Where the time went, in milliseconds; the HTTP side and the network come on top."""
    parts = {"queue_ms": timing.queue_s, "prompt_ms": timing.prompt_s, "completion_ms": timing.completion_s}
    return {name: None if seconds is None else round(seconds * 1000, 3) for name, seconds in parts.items()}


class Formatter:
    """The shape of one response: everything that its chunks, or its one object, have in common."""

    def __init__(self, response_id: str, model: ModelInfo, *, logprobs: bool, bill: Bill | None = None) -> None:
        self._common = {
            "id": response_id,
            "created": int(time.time()),
            "model": model.id,
            "system_fingerprint": model.fingerprint,
        }
        self._logprobs = logprobs
        self._bill = bill

    async def whole(self, events: AsyncIterator[ChatEvent], metadata: Mapping[str, str] | None) -> dict[str, Any]:
        """The `chat.completion` object, when all events have come."""
        choices: dict[int, _Choice] = {}
        usage: Usage | None = None
        timing: Timing | None = None
        async for event in events:
            if isinstance(event, Usage):
                usage = event
            elif isinstance(event, Timing):
                timing = event
            elif not isinstance(event, AllowanceEvent):
                choices.setdefault(event.index, _Choice()).add(event)
        assert usage is not None, "a provider ends its stream with a Usage, or raises"
        response = {
            **self._common,
            "object": "chat.completion",
            "choices": [self._explained(choices[index].as_object(index, self._logprobs)) for index in sorted(choices)],
            "usage": usage_object(usage, self._bill),
        }
        if timing is not None:
            response["timings"] = timings_object(timing)
        return response if metadata is None else response | {"metadata": dict(metadata)}

    def opening(self, n: int, include_usage: bool) -> Iterator[dict[str, Any]]:
        """The first chunk of each choice, which carries the role."""
        for index in range(n):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None}, None, None, include_usage)

    def chunk(self, event: ChatEvent, include_usage: bool) -> dict[str, Any] | None:
        """The chunk that says `event`; None for a usage that was not asked for, and what is no news for a client."""
        if isinstance(event, AllowanceEvent):
            return None
        if isinstance(event, Timing):
            chunk = {**self._common, "object": "chat.completion.chunk", "choices": []}
            chunk |= {"usage": None} if include_usage else {}
            return chunk | {"timings": timings_object(event)}
        if isinstance(event, Usage):
            if not include_usage:
                return None
            common = {**self._common, "object": "chat.completion.chunk"}
            return {**common, "choices": [], "usage": usage_object(event, self._bill)}
        if isinstance(event, Finished):
            return self._chunk(event.index, {}, None, event.reason, include_usage)
        if isinstance(event, ReasoningDelta):
            delta = {"reasoning_content": event.text, "reasoning": event.text}
            return self._chunk(event.index, delta, None, None, include_usage)
        if isinstance(event, ToolCallDelta):
            return self._chunk(event.index, {"tool_calls": [_call_delta(event)]}, None, None, include_usage)
        logprobs = _logprobs_object(event.logprobs) if self._logprobs else None
        return self._chunk(event.index, {"content": event.text}, logprobs, None, include_usage)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None,
        finish_reason: str | None,
        include_usage: bool,
    ) -> dict[str, Any]:
        choice = self._explained({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason})
        chunk = {**self._common, "object": "chat.completion.chunk", "choices": [choice]}
        return chunk | {"usage": None} if include_usage else chunk

    def _explained(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A choice that ended for money says for which, in an error object of its own."""
        if choice["finish_reason"] == "budget" and self._bill is not None and self._bill.stopped_by is not None:
            code, message = self._bill.stopped_by
            choice["error"] = {"message": message, "type": "rate_limit_error", "param": None, "code": code}
        return choice


@dataclass(slots=True)
class _Call:
    """One call, as far as it was written."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)

    def as_object(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": "".join(self.arguments)}
        return {"id": self.id, "type": "function", "function": function}


class _Choice:
    """What one choice has said so far."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._calls: list[_Call] = []
        self._finish_reason: str | None = None

    def add(self, event: ContentDelta | ReasoningDelta | ToolCallDelta | Finished) -> None:
        if isinstance(event, ContentDelta):
            self._content.append(event.text)
            self._logprobs += event.logprobs
        elif isinstance(event, ReasoningDelta):
            self._reasoning.append(event.text)
        elif isinstance(event, ToolCallDelta):
            if event.id is not None:
                self._calls.append(_Call(event.id, event.name or ""))
            self._calls[event.call].arguments.append(event.arguments)
        else:
            self._finish_reason = event.reason

    def as_object(self, index: int, logprobs: bool) -> dict[str, Any]:
        content = "".join(self._content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if self._calls and not content else content,
            "refusal": None,
            "annotations": [],
        }
        if self._reasoning:
            reasoning = "".join(self._reasoning)
            message |= {"reasoning_content": reasoning, "reasoning": reasoning}
        if self._calls:
            message["tool_calls"] = [call.as_object() for call in self._calls]
        return {
            "index": index,
            "message": message,
            "logprobs": _logprobs_object(self._logprobs) if logprobs else None,
            "finish_reason": self._finish_reason,
        }


def _call_delta(event: ToolCallDelta) -> dict[str, Any]:
    """The id and the name come once, with the first piece."""
    if event.id is None:
        return {"index": event.call, "function": {"arguments": event.arguments}}
    function = {"name": event.name, "arguments": event.arguments}
    return {"index": event.call, "id": event.id, "type": "function", "function": function}


def _logprobs_object(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [{**_token(token), "top_logprobs": [_token(other) for other in token.top]} for token in tokens],
        "refusal": None,
    }


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "bytes": list(token.data), "logprob": token.logprob}
