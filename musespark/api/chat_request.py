"""The body of POST /v1/chat/completions: each field accepted here has an effect, every other one is refused by name.

Three fields are labels: `user` and `safety_identifier` go to the request's log line, `metadata` comes back in the
response. Ranges are those of the engine (engine/request.py), taken from there so that they can't drift.
"""

from __future__ import annotations

import hmac
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import (
    AllowInfNan,
    Discriminator,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from musespark.api.chat_messages import MAX_MESSAGES, ChatMessage, Strict, check_calls, tag, text_or_list, to_messages
from musespark.api.chat_tools import (
    NamedTool,
    ResponseFormat,
    Tool,
    ToolChoice,
    answer_schema,
    check_tool_choice,
    offered_tools,
)
from musespark.api.request_errors import explain, json_type
from musespark.engine.output import MAX_STOP_CHARS, MAX_STOP_STRINGS
from musespark.engine.request import FLOAT_RANGES, LARGEST_INT, MAX_CHOICES, MAX_LOGIT_BIASES, MAX_LOGPROBS, SEED_BITS
from musespark.errors import InvalidRequest
from musespark.providers.base import ChatRequest
from musespark.providers.constraints import MAX_TOOLS

# Fields of OpenAI's protocol and of other engines that this server knows and refuses, with what it says about them.
_OLD_TOOLS = "it was replaced by `tools` and `tool_choice`; send these"
_NO_AUDIO = "this model has no audio"
_NO_TEMPLATES = "templates are never taken from requests: they would run on the server"
_KNOWN: dict[str, str] = {
    **dict.fromkeys(("functions", "function_call"), _OLD_TOOLS),
    "audio": _NO_AUDIO,
    **dict.fromkeys(("chat_template", "chat_template_kwargs"), _NO_TEMPLATES),
    **dict.fromkeys(("prompt_cache_options", "prompt_cache_retention", "moderation", "prediction", "service_tier"), ""),
    **dict.fromkeys(("store", "verbosity", "web_search_options"), ""),
}
# What some of them may say, since it is what happens anyway.
_NO_OPS: dict[str, tuple[str | bool, ...]] = {
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
}


def _range(name: str) -> tuple[Any, ...]:
    low, high, low_allowed = FLOAT_RANGES[name]
    return (Ge(low) if low_allowed else Gt(low), Le(high), AllowInfNan(False))


Temperature = Annotated[float, *_range("temperature")]
TopP = Annotated[float, *_range("top_p")]
MinP = Annotated[float, *_range("min_p")]
FrequencyPenalty = Annotated[float, *_range("frequency_penalty")]
PresencePenalty = Annotated[float, *_range("presence_penalty")]
RepetitionPenalty = Annotated[float, *_range("repetition_penalty")]
Bias = Annotated[float, Ge(-100), Le(100), AllowInfNan(False)]
PositiveInt = Annotated[int, Ge(1), Le(LARGEST_INT)]
TokenId = Annotated[int, Ge(0), Le(LARGEST_INT)]
TokenIdText = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,9})$")]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARS)]
Stop = Annotated[
    Annotated[StopString, tag("text")] | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS), tag("list")],
    Discriminator(text_or_list),
]
Label = Annotated[str, StringConstraints(max_length=512)]


class StreamOptions(Strict):
    include_usage: bool | None = None
    empty_only = frozenset({"include_obfuscation"})


class ChatCompletionRequest(Strict):
    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: PositiveInt | None = Field(None, description="default: as many as the context still holds")
    max_tokens: PositiveInt | None = Field(None, description="the older name of max_completion_tokens")
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Ge(0), Le(LARGEST_INT)] | None = Field(None, description="0: off")
    min_p: MinP | None = None
    frequency_penalty: FrequencyPenalty | None = None
    presence_penalty: PresencePenalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    n: Annotated[int, Ge(1), Le(MAX_CHOICES)] | None = None
    seed: Annotated[int, Ge(-(1 << (SEED_BITS - 1))), Le((1 << SEED_BITS) - 1)] | None = None
    stop: Stop | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool | None = Field(None, description="go on to max_tokens, whatever the model says")
    logit_bias: Annotated[dict[TokenIdText, Bias], Field(max_length=MAX_LOGIT_BIASES)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Ge(0), Le(MAX_LOGPROBS)] | None = None
    reasoning_effort: Annotated[str, StringConstraints(max_length=40)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = Field(None, description="default: auto")
    parallel_tool_calls: bool | None = Field(None, description="default: true")
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include_timings: bool | None = Field(None, description="where the time went, as `timings` of the answer")
    prompt_cache_key: Label | None = Field(None, description="cached prefixes are shared under the same key only")
    user: Label | None = Field(None, description="a label for the log")
    safety_identifier: Label | None = Field(None, description="a label for the log")
    metadata: (
        Annotated[
            dict[Annotated[str, StringConstraints(max_length=64)], Label],
            Field(max_length=16),
        ]
        | None
    ) = Field(None, description="labels that come back in the response")

    empty_only = frozenset(_KNOWN)
    no_ops = _NO_OPS

    @field_validator("modalities", mode="before")
    @classmethod
    def _no_audio(cls, value: Any) -> Any:
        if isinstance(value, list) and "audio" in value:
            raise PydanticCustomError("unsupported_field", "can't have 'audio': this model has none")
        return value

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatCompletionRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequest("max_tokens and max_completion_tokens differ; send one", param="max_completion_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("`top_logprobs` needs `logprobs`: true", param="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("`stream_options` needs `stream`: true", param="stream_options")
        check_calls(self.messages)
        check_tool_choice(self.tools or [], self.tool_choice)
        return self

    def to_request(self, request_id: str, cache_salt: bytes) -> ChatRequest:
        """What the provider needs. Raises InvalidImage."""
        if self.prompt_cache_key is not None:
            cache_salt = hmac.digest(cache_salt, self.prompt_cache_key.encode(), "sha256")
        only_tool = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return ChatRequest(
            id=request_id,
            messages=to_messages(self.messages),
            cache_salt=cache_salt,
            n=self.n or 1,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            stop=stop,
            reasoning_effort=self.reasoning_effort,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            tools=() if self.tool_choice == "none" else offered_tools(self.tools or []),
            tool_choice="required" if self.tool_choice == "required" or only_tool else "auto",
            only_tool=only_tool,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            answer_schema=answer_schema(self.response_format),
            include_timings=bool(self.include_timings),
        )


def parse_request(data: Any) -> ChatCompletionRequest:
    """Check a parsed JSON body. Raises InvalidRequest or UnsupportedField naming the field in `param`."""
    if not isinstance(data, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {json_type(data)}")
    try:
        return ChatCompletionRequest.model_validate(data)
    except ValidationError as error:
        # An unknown field last: a known one with a wrong value tells more.
        first = min(error.errors(include_url=False), key=lambda e: e["type"] == "extra_forbidden")
        raise explain(first, _KNOWN) from None
