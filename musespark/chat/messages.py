"""What is said: a conversation as plain data.

A conversation is a sequence of `Message`. Nothing here is checked beyond its type: the API checks what clients send,
`templates` refuses what can't be written in the chat format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """The bytes of an image file, still encoded: PNG, JPEG, WebP or GIF."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the assistant made earlier. `arguments` should be a JSON object, as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters` is a JSON schema of an object.

    The defaults are what a definition without description or parameters means; published templates fail without them.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    `reasoning` and `tool_calls` belong to the assistant; `tool_call_id` and `name` say which call a tool's result
    answers.
    """

    role: Role
    content: tuple[Text | Image, ...] = ()
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
