"""What a provider is: somebody who answers a chat request with a stream of events.

`LocalProvider` (local.py) asks our own engine. The API knows only this file: it never sees a token id or a page.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from musespark.chat.messages import Message
from musespark.engine.request import Usage

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One request to continue a conversation. A sampling field that is None takes the model's own default.

    `max_tokens` None means as many as the context still holds. `logprobs` None is off, otherwise the number of
    alternatives to report. `cache_salt` is secret to the caller's organisation; a cached prefix serves one salt only.
    """

    id: str
    messages: tuple[Message, ...]
    cache_salt: bytes
    n: int = 1
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    reasoning_effort: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of the content; `top` is best first.

    `text` is `data`, its bytes, with U+FFFD where they are not UTF-8 by themselves.
    """

    text: str
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer of choice `index`. `logprobs` are of the tokens since the last ContentDelta."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what choice `index` thinks before it answers."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of choice `index`."""

    index: int
    reason: FinishReason


ChatEvent = ContentDelta | ReasoningDelta | Finished | Usage


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is public about a model. `fingerprint` changes when its answers may: other weights, precision or program."""

    id: str
    created: int  # UTC seconds since 1970
    owned_by: str
    fingerprint: str


class ChatStream(Protocol):
    """The events of one admitted request, for one consumer. A Usage comes last, after a Finished for each choice.

    Iterating may raise EngineFailed or ShuttingDown.
    """

    @property
    def usage(self) -> Usage | None:
        """What the request used, exactly: known after the last event, after `aclose` and after a failure."""
        ...

    def __aiter__(self) -> AsyncIterator[ChatEvent]: ...

    async def __anext__(self) -> ChatEvent: ...

    async def aclose(self) -> None:
        """Cancel what is not finished, free all that it holds, and learn the usage."""
        ...


class Provider(Protocol):
    @property
    def model(self) -> ModelInfo: ...

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be answered."""
        ...

    async def chat(self, request: ChatRequest) -> ChatStream:
        """Admit the request. Raises what is wrong with it or with the moment: InvalidRequest and its kinds, Overloaded,
        ShuttingDown, EngineFailed. Cancelling the task that waits here withdraws the request.
        """
        ...

    def metrics(self) -> Mapping[str, float]:
        """Numbers of this moment by name, for operators; those named `…_total` only grow."""
        ...
