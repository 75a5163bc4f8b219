"""The body of POST /v1/chat/completions: each field accepted here has an effect, every other one is refused by name.

Three fields are labels: `user` and `safety_identifier` go to the request's log line, `metadata` comes back in the
response. Ranges are those of the engine (engine/request.py), taken from there so that they can't drift.
"""

from __future__ import annotations

import hmac
import json
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
from pydantic_core import ErrorDetails, PydanticCustomError

from musespark.api.chat_messages import MAX_MESSAGES, TAG_MARK, ChatMessage, Strict, tag, text_or_list, to_messages
from musespark.engine.output import MAX_STOP_CHARS, MAX_STOP_STRINGS
from musespark.engine.request import FLOAT_RANGES, LARGEST_INT, MAX_CHOICES, MAX_LOGIT_BIASES, MAX_LOGPROBS, SEED_BITS
from musespark.errors import InvalidRequest, UnsupportedField
from musespark.providers.base import ChatRequest

# Fields of OpenAI's protocol and of other engines that this server knows and refuses, with what it says about them.
_NO_TOOLS = "tool calls are not supported by this server yet"
_NO_AUDIO = "this model has no audio"
_NO_TEMPLATES = "templates are never taken from requests: they would run on the server"
_KNOWN: dict[str, str] = {
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls"), _NO_TOOLS),
    "audio": _NO_AUDIO,
    **dict.fromkeys(("chat_template", "chat_template_kwargs"), _NO_TEMPLATES),
    **dict.fromkeys(("prompt_cache_options", "prompt_cache_retention", "moderation", "prediction", "service_tier"), ""),
    **dict.fromkeys(("store", "verbosity", "web_search_options"), ""),
}
# What some of them may say, since it is what happens anyway.
_NO_OPS: dict[str, tuple[str | bool, ...]] = {
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True,),
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


class ResponseFormat(Strict):
    type: Literal["text"]

    @field_validator("type", mode="before")
    @classmethod
    def _text_only(cls, value: Any) -> Any:
        if value in ("json_object", "json_schema"):
            raise PydanticCustomError("unsupported_field", "can't be 'json_object' or 'json_schema' yet; only 'text'")
        return value


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
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
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
        return self

    def to_request(self, request_id: str, cache_salt: bytes) -> ChatRequest:
        """What the provider needs. Raises InvalidImage."""
        if self.prompt_cache_key is not None:
            cache_salt = hmac.digest(cache_salt, self.prompt_cache_key.encode(), "sha256")
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
        )


def parse_request(data: Any) -> ChatCompletionRequest:
    """Check a parsed JSON body. Raises InvalidRequest or UnsupportedField naming the field in `param`."""
    if not isinstance(data, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_json_type(data)}")
    try:
        return ChatCompletionRequest.model_validate(data)
    except ValidationError as error:
        # An unknown field last: a known one with a wrong value tells more.
        first = min(error.errors(include_url=False), key=lambda e: e["type"] == "extra_forbidden")
        raise _explain(first) from None


# What pydantic means, in words that fit JSON; {} takes the bound. Any other message of pydantic's is shown as it is.
_MESSAGES = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "must be an object"),
    "list_type": "must be a list",
    "string_type": "must be a string",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} entry",
    "too_long": "must have at most {max_length} entries",
    "string_too_short": "must have at least {min_length} character",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
    "finite_number": "must be a finite number",
}
# What the names of the fields in an object must be.
_KEYS = {
    "logit_bias": 'a key must be a token id, such as "42"',
    "metadata": "a key must have at most 64 characters",
}


def _explain(error: ErrorDetails) -> InvalidRequest:
    """One of pydantic's errors as ours: the path as the client wrote it, and what to do."""
    kind, value = error["type"], error["input"]
    path = _path(error["loc"], keep_last=kind == "extra_forbidden")
    if kind in ("unknown_role", "unknown_part"):
        if not isinstance(value, dict):
            kind = "dict_type"
        else:
            name = "role" if kind == "unknown_role" else "type"
            path.append(name)
            kind = kind if name in value else "missing"
            value = value.get(name)
    if len(error["loc"]) == 3 and error["loc"][0] in _KEYS and error["loc"][2] == "[key]":
        name = str(error["loc"][0])
        return InvalidRequest(f"`{name}` has the key {_shown(value)}; {_KEYS[name]}", param=name)
    field = ".".join(path)
    param = field or None
    if kind == "extra_forbidden":
        reason = _KNOWN.get(path[-1]) or "it is not supported; remove it"
        return UnsupportedField(f"`{field}`: {reason}", param=param)
    if kind == "unsupported_field":
        return UnsupportedField(f"`{field}` {error['msg']}", param=param)
    if kind == "unknown_part":
        return UnsupportedField(f"`{field}` is {_shown(value)}; it must be 'text' or 'image_url'", param=param)
    if kind == "unknown_role":
        roles = "'developer', 'system', 'user', 'assistant' or 'tool'"
        return InvalidRequest(f"`{field}` is {_shown(value)}; it must be {roles}", param=param)
    if kind == "missing":
        return InvalidRequest(f"the field `{field}` is missing", param=param)
    message = _MESSAGES[kind].format_map(error.get("ctx", {})) if kind in _MESSAGES else error["msg"]
    if kind == "list_type" and error["loc"][-1] == TAG_MARK + "list":
        message = "must be a string or a list"
    shown = ""
    if isinstance(value, bool | int | float):
        shown = f"; it is {_shown(value)}"
    elif kind.endswith("_type"):
        shown = f"; it is {_json_type(value)}"
    return InvalidRequest(f"`{field}` {message}{shown}" if field else message, param=param)


def _path(loc: tuple[int | str, ...], keep_last: bool) -> list[str]:
    """The steps to the field, without the names of union branches; the last step may be a name that a client chose."""
    steps = [_cut(str(step)) for step in loc]
    return [
        step for i, step in enumerate(steps) if not step.startswith(TAG_MARK) or (keep_last and i == len(steps) - 1)
    ]


def _shown(value: Any) -> str:
    """A value as JSON has it, in words where it is long; a string in the quotes of our texts."""
    if isinstance(value, str):
        return _cut(repr(value))
    return _json_type(value) if isinstance(value, dict | list) else _cut(json.dumps(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"


def _json_type(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return "an object" if isinstance(value, dict) else names.get(type(value), "null")
