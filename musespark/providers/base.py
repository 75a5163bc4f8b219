"""What a provider is: somebody who answers a chat request with a stream of events.

`LocalProvider` (local.py) asks our own engine. The API knows only this file: it never sees a token id or a page.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from musespark.chat.messages import Message, Tool
from musespark.engine.allowance import Allowance
from musespark.engine.request import AllowanceEvent, Timing, Usage

FinishReason = Literal["stop", "length", "tool_calls", "budget"]  # budget: no more tokens were paid for


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A tool that comes with a request. `strict`: the arguments of every call keep to its schema, in any case.

    field: the place of the schema in the request, for errors.
    """

    tool: Tool
    strict: bool = False
    field: str = "tools"


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """What the answer to the user must be: JSON of this schema. `field` is its place in the request, for errors."""

    schema: Mapping[str, Any]
    field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One request to continue a conversation. A sampling field that is None takes the model's own default.

    `max_tokens` None means as many as the context still holds. `logprobs` None is off, otherwise the number of
    alternatives to report. `cache_salt` is secret to the caller's organisation; a cached prefix serves one salt only.
    include_timings: whether the events tell where its time went.
    `tenant` names the organisation: the engine is fair to them. No more tokens are generated than `allowance` grants.
    context_limit: how many tokens prompt and completion may have together, where that is less than the model's context.

    tool_choice: whether the model may call `tools`, or must; "none" is said by offering none. `only_tool` is the name
        of the one that it must call then.
    parallel_tool_calls: whether a turn may hold several calls.
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
    tools: tuple[OfferedTool, ...] = ()
    tool_choice: Literal["auto", "required"] = "auto"
    only_tool: str | None = None
    parallel_tool_calls: bool = True
    answer_schema: AnswerSchema | None = None
    tenant: str = ""
    allowance: Allowance | None = None
    include_timings: bool = False
    context_limit: int | None = None


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
class ToolCallDelta:
    """More of call number `call` of choice `index`: first its id and name, then its arguments, piece by piece.

    The pieces join to a JSON object, unless the answer was cut off.
    """

    index: int
    call: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of choice `index`. "tool_calls": the model ended its turn with calls that are whole."""

    index: int
    reason: FinishReason


ChatEvent = ContentDelta | ReasoningDelta | ToolCallDelta | Finished | Timing | Usage | AllowanceEvent


@dataclass(frozen=True, slots=True)
class PromptSize:
    """What a request is about to use, known when its prompt is written. `most_completion_tokens` is of all choices."""

    text_tokens: int
    image_tokens: int
    num_images: int
    most_completion_tokens: int

    @property
    def tokens(self) -> int:
        return self.text_tokens + self.image_tokens


Admit = Callable[[PromptSize], Awaitable[Allowance | None]]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is public about a model. `fingerprint` changes when its answers may: other weights, precision or program."""

    id: str
    created: int  # UTC seconds since 1970
    owned_by: str
    fingerprint: str
    context_length: int = 0  # 0: not known
    reads_images: bool = False


class ChatStream(Protocol):
    """The events of one admitted request, for one consumer. A Usage comes last, after a Finished for each choice
    and, where it was asked for, a Timing.

    Of a request with an allowance there are AllowanceEvents too: whoever reads them grants more, or it pauses.

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

    @property
    def failed(self) -> bool:
        """Whether it is not ready because it failed, and will be only after a restart."""
        ...

    async def chat(
        self,
        request: ChatRequest,
        *,
        admit: Admit | None = None,
        on_withdrawn: Callable[[Usage], None] | None = None,
    ) -> ChatStream:
        """Admit the request. Raises what is wrong with it or with the moment: InvalidRequest and its kinds, Overloaded,
        ShuttingDown, EngineFailed. Cancelling the task that waits here withdraws the request; if it was being answered
        already, `on_withdrawn` is told what it used, since there is no stream to tell it.

        admit: asked when the size of the prompt is known and before anything of it is computed; what it raises refuses
            the request, and its allowance takes the place of the request's.
        """
        ...

    def metrics(self) -> Mapping[str, float]:
        """Numbers of this moment by name, for operators; those named `…_total` only grow."""
        ...
