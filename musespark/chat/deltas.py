"""What a parser says of a stream: text for the user, text of the reasoning, and tool calls as they are written.

The tool call kinds are those of OpenAI's streaming protocol: a call starts once with its id and name, and its arguments
come as fragments of one JSON text. Both formats' parsers, `parser` and `llama4_parser`, give these.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["reasoning", "content"]


@dataclass(frozen=True, slots=True)
class Delta:
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """Call number `index` of this turn begins. `name` is always that of a tool that was offered."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """A fragment of the arguments of call `index`. Joined they are a JSON object, unless the model was cut off."""

    index: int
    json: str


@dataclass(frozen=True, slots=True)
class ToolCallError:
    """The model wrote a call that names no tool that was offered: why it is not one, and what the model wrote."""

    message: str
    text: str


Event = Delta | ToolCallStart | ToolCallArguments | ToolCallError


class StreamParser(Protocol):
    """Reads one generated turn, token by token. Not shared between streams.

    in_reasoning: whether the token pushed last belongs to the reasoning, its end mark included.
    reasoning_tokens: how many did so far, with the headers that led to it.
    body: what the text of the token pushed last belongs to; None while that is open.
    num_tool_calls: calls begun so far.
    """

    in_reasoning: bool
    reasoning_tokens: int

    @property
    def body(self) -> Kind | Literal["tool"] | None: ...

    @property
    def num_tool_calls(self) -> int: ...

    def push(self, token_id: int) -> Sequence[Event]: ...

    def finish(self, *, whole: bool = False) -> Sequence[Event]:
        """Say that no more tokens come. `whole` if the model ended its turn, with a stop token that was not pushed.

        A turn that was cut off leaves the call it was in open: half a command must not pass for a command.
        """
        ...


class EventList:
    """Collects events between two pushes; text and fragments that follow each other become one."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def text(self, kind: Kind, text: str) -> None:
        if not text:
            return
        if self._events and isinstance(last := self._events[-1], Delta) and last.kind == kind:
            self._events[-1] = Delta(kind, last.text + text)
        else:
            self._events.append(Delta(kind, text))

    def arguments(self, index: int, json: str) -> None:
        if not json:
            return
        if self._events and isinstance(last := self._events[-1], ToolCallArguments) and last.index == index:
            self._events[-1] = ToolCallArguments(index, last.json + json)
        else:
            self._events.append(ToolCallArguments(index, json))

    def add(self, event: ToolCallStart | ToolCallError) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
