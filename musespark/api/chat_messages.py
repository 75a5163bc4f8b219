"""The `messages` of a chat request: what OpenAI's protocol allows, as far as this model can take it.

Pydantic checks shapes here, and `to_messages` makes plain data of them. Images come as data URLs only: a server that
fetches what a request names can be sent to look around its own network.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NoReturn

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from musespark.chat.messages import Image, Message, Text, ToolCall
from musespark.errors import InvalidImage, InvalidRequest

MAX_MESSAGES = 2048
TAG_MARK = "="
_DATA_URL = re.compile(r"data:image/(?:png|jpeg|jpg|webp|gif);base64,", re.IGNORECASE)
_OTHER_IMAGE = re.compile(r"data:(image/(?!(?:png|jpeg|jpg|webp|gif)[;,])[a-z0-9.+-]{1,40})[;,]", re.IGNORECASE)

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
CalledName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]  # perhaps with a namespace
ToolCallId = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Strict(BaseModel):
    """Exact types, and no field that is not declared.

    `empty_only` are fields that clients send back or fill in by habit: they are accepted while they say nothing (null,
    false or empty, or what `no_ops` has for them), and refused by name otherwise.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    empty_only: ClassVar[frozenset[str]] = frozenset()
    no_ops: ClassVar[Mapping[str, Sequence[str | bool]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {
            name: value
            for name, value in data.items()
            if name not in cls.empty_only or not (_is_empty(value) or cls._is_no_op(name, value))
        }

    @classmethod
    def _is_no_op(cls, name: str, value: Any) -> bool:
        return any(type(value) is type(no_op) and value == no_op for no_op in cls.no_ops.get(name, ()))


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ([], {})


class TextPart(Strict):
    type: Literal["text"]
    text: str
    empty_only = frozenset({"prompt_cache_breakpoint"})


class ImageUrl(Strict):
    url: str
    detail: Literal["auto", "high"] | None = Field(None, description="an image is always read in its full resolution")


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl
    empty_only = frozenset({"prompt_cache_breakpoint"})


def tag(name: str) -> Tag:
    """Names a branch of a union; the mark tells it from a field's name in the path of an error."""
    return Tag(TAG_MARK + name)


def _type_of_part(value: Any) -> str:
    return TAG_MARK + str(value.get("type") if isinstance(value, dict) else getattr(value, "type", None))


def _role(value: Any) -> str:
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    return TAG_MARK + ("system" if role == "developer" else str(role))


def text_or_list(value: Any) -> str:
    return TAG_MARK + ("text" if isinstance(value, str) else "list")


Part = Annotated[
    Annotated[TextPart, tag("text")] | Annotated[ImagePart, tag("image_url")],
    Discriminator(_type_of_part, custom_error_type="unknown_part", custom_error_message="unknown part"),
]
Content = Annotated[
    Annotated[str, tag("text")] | Annotated[list[Part], Field(min_length=1), tag("list")], Discriminator(text_or_list)
]
TextContent = Annotated[
    Annotated[str, tag("text")] | Annotated[list[TextPart], Field(min_length=1), tag("list")],
    Discriminator(text_or_list),
]


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: TextContent
    empty_only = frozenset({"name"})


class UserMessage(Strict):
    role: Literal["user"]
    content: Content
    empty_only = frozenset({"name"})


class FunctionCall(Strict):
    name: CalledName
    arguments: str
    parsed_arguments: Any = Field(None, description="what SDKs made of `arguments`; it is not read")

    @field_validator("arguments")
    @classmethod
    def _is_an_object(cls, text: str) -> str:
        """An empty text is what clients send for a call without arguments."""
        try:
            value = json.loads(text or "{}", parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise PydanticCustomError("bad_arguments", "must be a JSON object, as text")
        return text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class HistoryToolCall(Strict):
    id: ToolCallId
    type: Literal["function"]
    function: FunctionCall
    index: int | None = Field(None, description="its number in the stream that it came from; it is not read")


class AssistantMessage(Strict):
    role: Literal["assistant"]
    content: TextContent | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[HistoryToolCall] | None = Field(None, max_length=128)
    parsed: Any = Field(None, description="what SDKs made of `content`; it is not read")
    provider_specific_fields: Any = Field(None, description="what litellm keeps beside an answer; it is not read")
    empty_only = frozenset({"name", "refusal", "annotations", "audio", "function_call"})

    @model_validator(mode="after")
    def _says_one_thing(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("empty_message", "needs content or tool_calls")
        if None not in (self.reasoning, self.reasoning_content) and self.reasoning != self.reasoning_content:
            raise PydanticCustomError("two_reasonings", "has reasoning and reasoning_content that differ; send one")
        return self


class ToolMessage(Strict):
    role: Literal["tool"]
    content: TextContent
    tool_call_id: ToolCallId
    name: CalledName | None = None


ChatMessage = Annotated[
    Annotated[SystemMessage, tag("system")]
    | Annotated[UserMessage, tag("user")]
    | Annotated[AssistantMessage, tag("assistant")]
    | Annotated[ToolMessage, tag("tool")],
    Discriminator(_role, custom_error_type="unknown_role", custom_error_message="unknown role"),
]


def check_calls(messages: Sequence[ChatMessage]) -> None:
    """Raises InvalidRequest for a tool's result before, or without, the call that it answers."""
    called: set[str] = set()
    for i, message in enumerate(messages):
        if isinstance(message, AssistantMessage):
            called |= {call.id for call in message.tool_calls or ()}
        elif isinstance(message, ToolMessage) and message.tool_call_id not in called:
            field = f"messages.{i}.tool_call_id"
            raise InvalidRequest(
                f"`{field}` is {message.tool_call_id[:60]!r}; no assistant message before it has a call of this id",
                param=field,
            )


def to_messages(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Plain messages, images decoded from base64. Raises InvalidImage naming the part."""
    return tuple(_to_message(message, f"messages.{i}") for i, message in enumerate(messages))


def _to_message(message: ChatMessage, where: str) -> Message:
    content = _to_content(message.content, f"{where}.content")
    if isinstance(message, AssistantMessage):
        calls = tuple(
            ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()
        )
        return Message("assistant", content, reasoning=message.reasoning or message.reasoning_content, tool_calls=calls)
    if isinstance(message, ToolMessage):
        return Message("tool", content, tool_call_id=message.tool_call_id, name=message.name)
    return Message("user" if isinstance(message, UserMessage) else "system", content)


def _to_content(content: str | Sequence[TextPart | ImagePart] | None, where: str) -> tuple[Text | Image, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (Text(content),)
    return tuple(
        Text(part.text) if isinstance(part, TextPart) else Image(_image_bytes(part.image_url.url, f"{where}.{i}"))
        for i, part in enumerate(content)
    )


def _image_bytes(url: str, where: str) -> bytes:
    param = f"{where}.image_url.url"
    head = _DATA_URL.match(url)
    if head is None:
        other = _OTHER_IMAGE.match(url)
        if other is not None:
            raise InvalidImage(f"{other[1].lower()} is not supported; send PNG, JPEG, WebP or GIF", param=param)
        scheme = url.partition(":")[0].lower()
        if scheme in ("http", "https"):
            raise InvalidImage(
                "remote images are not fetched, because that would let a request reach into this server's network; "
                "send the image itself as data:image/png;base64,…",
                param=param,
            )
        raise InvalidImage(
            f"the image URL starts with {url[:20]!r}; it must be data:image/png;base64,… (or jpeg, webp, gif)",
            param=param,
        )
    text = url[head.end() :]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        if re.search(r"\s", text):
            problem = "has line breaks or spaces in its base64; send it as one line (`base64 -w0`)"
        else:
            problem = "holds characters that are not base64, or lacks its padding"
        raise InvalidImage(f"the image URL {problem}", param=param) from None
