"""Llama 4's tool calls, read as they are written, in both of its notations:

    {"name": "f", "parameters": {"a": 1}}        one object, several in a row, or a JSON array of them
    [f(a=1), g(b="x")]                           Python calls with literal arguments

Each argument is given out when it is whole, since the notations write strings differently. Text that turns out to be no
call to an offered tool is content, to the letter; between the marks for calls, a call to another name is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from musespark.chat.deltas import EventList, ToolCallError, ToolCallStart
from musespark.chat.literals import Balance, NoLiteral, read_literal, to_json
from musespark.chat.messages import Tool
from musespark.chat.tools import Toolbox, json_text

MAX_SPACE = 64  # before a call; more is content

_SPACE = r"\s{0,16}"
_NAME = r"[A-Za-z_][\w.\-]{0,199}"
_OBJECT_HEAD = re.compile(
    rf'\{{{_SPACE}(?:"type"{_SPACE}:{_SPACE}"function"{_SPACE},{_SPACE})?"name"{_SPACE}:{_SPACE}"({_NAME})"{_SPACE},'
    rf'{_SPACE}"(?:parameters|arguments)"{_SPACE}:{_SPACE}\{{'
)
_KEYS_OF_CALLS = ("name", "type", "parameters", "arguments")
_FIRST_KEY = re.compile(rf"\{{{_SPACE}[\"']([^\"']{{0,16}})[\"']")
_FIRST_KEY_SO_FAR = re.compile(rf"\{{{_SPACE}(?:[\"'][^\"']{{0,16}})?")
_CALL_HEAD = re.compile(rf"({_NAME}){_SPACE}\(")
_CALL_HEAD_SO_FAR = re.compile(rf"{_NAME}{_SPACE}")
_ARGUMENT = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)(.*)", re.DOTALL)
_BETWEEN_CALLS = re.compile(r"[\s,;]*")


class Llama4Calls:
    """Reads the text of one turn, in segments: from its beginning, a mark or the end of one, to the next mark or end.

    A segment holds calls if it begins with one.
    """

    def __init__(self, tools: Toolbox, events: EventList, make_id: Callable[[], str]) -> None:
        self._tools = tools
        self._events = events
        self._make_id = make_id
        self.num_calls = 0
        self.begin(marked=False)

    def begin(self, *, marked: bool) -> None:
        """A new segment; `marked` if it stands behind `<|python_start|>`."""
        self._marked = marked
        self._state: Literal["item", "arguments", "tail", "between", "content"] = "item"
        self._held = ""
        self._lead = ""  # what stands before an item, and is content if that is no call
        self._in_list = False
        self._end = Balance()
        self._tool = Tool("")
        self._python = False
        self._num_arguments = self._num_positional = 0

    @property
    def body(self) -> Literal["content", "tool"] | None:
        """What the text read last is; None while that is open."""
        return None if self._state == "item" else "content" if self._state == "content" else "tool"

    def push(self, text: str) -> None:
        self._held += text
        steps: dict[str, Callable[[], bool]] = {
            "item": self._read_item,
            "arguments": self._read_argument,
            "tail": self._read_tail,
            "between": self._read_between,
            "content": self._give_content,
        }
        while self._held and steps[self._state]():
            pass

    def end(self, *, whole: bool) -> None:
        """The segment ends. What is still undecided is content; a call that was cut off stays open."""
        if self._state == "arguments" and whole:
            self._add_argument(self._held)
            self._close_call()
        elif self._state in ("item", "content"):
            self._give_content()
        self.begin(marked=False)

    # Each step reads one thing from the held text, and says whether there may be another.

    def _read_item(self) -> bool:
        """The beginning of a call, or the end of the hope that this is one."""
        text = self._held.lstrip()
        if len(self._held) - len(text) > MAX_SPACE:
            return self._become_content()
        if not text:
            return False
        if text[0] == "{":
            return self._read_object(text)
        if self._in_list or self._marked:
            if head := _CALL_HEAD.match(text):
                return self._read_python(text, head)
            if _CALL_HEAD_SO_FAR.fullmatch(text):
                return False
        if text[0] == "[" and not self._in_list and len(self._lead) <= MAX_SPACE:
            self._in_list = True
            self._lead += self._held[: len(self._held) - len(text) + 1]
            self._held = text[1:]
            return True
        return self._become_content()

    def _read_object(self, text: str) -> bool:
        head = _OBJECT_HEAD.match(text)
        match = self._tools.find(head[1]) if head else None
        if head and match:
            return self._open_call(match.tool, text[head.end() :], python=False)
        key = _FIRST_KEY.match(text)
        if key and (key[1] not in _KEYS_OF_CALLS or (head and not self._marked)):
            return self._become_content()
        if not key and not _FIRST_KEY_SO_FAR.fullmatch(text):
            return self._become_content()
        space = len(self._held) - len(text)  # the search goes on where it stopped, so it counts from a fixed place
        end = self._end.find(self._held, space + 1, "}")
        if end < 0:
            return False
        call = _read_call(self._held[space : end + 1])
        if call is None:
            return self._become_content()
        name, arguments = call
        if not (match := self._tools.find(name)):
            return self._refuse(name, end + 1)
        self._open_call(match.tool, self._held[end + 1 :], python=False)
        self._events.arguments(self.num_calls - 1, arguments)
        self._state = "between"
        return True

    def _read_python(self, text: str, head: re.Match[str]) -> bool:
        if match := self._tools.find(head[1]):
            return self._open_call(match.tool, text[head.end() :], python=True)
        if not self._marked:
            return self._become_content()
        end = self._end.find(self._held, len(self._held) - len(text) + head.end(), ")")
        return self._refuse(head[1], end + 1) if end >= 0 else False

    def _read_argument(self) -> bool:
        end = self._end.find(self._held, 0, ",")
        if end < 0:
            return False
        self._add_argument(self._held[:end])
        if self._held[end] != ",":
            self._close_call()
            self._state = "between" if self._python else "tail"
        self._held = self._held[end + 1 :]
        self._end = Balance()
        return True

    def _read_tail(self) -> bool:
        """What follows the parameters in an object, up to its closing brace."""
        end = self._end.find(self._held, 0, "}")
        if end < 0:
            return False
        self._held = self._held[end + 1 :]
        self._end = Balance()
        self._state = "between"
        return True

    def _read_between(self) -> bool:
        """Behind a call: separators, the end of the list, another call; or text, which is content."""
        space = _BETWEEN_CALLS.match(self._held)
        assert space is not None
        self._lead += space[0].strip()
        self._held = self._held[space.end() :]
        if self._held.startswith("]") and self._in_list:
            self._in_list, self._lead = False, ""
            self._held = self._held[1:]
        elif self._held:
            self._state = "item"
        return True

    def _give_content(self) -> bool:
        self._events.text("content", self._lead + self._held)
        self._lead = self._held = ""
        return False

    # What the steps do.

    def _become_content(self) -> bool:
        self._state = "content"
        return True

    def _open_call(self, tool: Tool, rest: str, *, python: bool) -> bool:
        self._events.add(ToolCallStart(self.num_calls, self._make_id(), tool.name))
        self.num_calls += 1
        self._num_arguments = self._num_positional = 0
        self._tool, self._python = tool, python
        self._held, self._lead, self._end = rest, "", Balance()
        self._state = "arguments"
        return True

    def _refuse(self, name: str, length: int) -> bool:
        """A call to a name that was not offered: an error between marks, content elsewhere."""
        if not self._marked:
            return self._become_content()
        message = f"the model called {name!r}, which is none of the tools offered: {', '.join(self._tools.names)}"
        self._events.add(ToolCallError(message, self._held[:length].strip()))
        self._held, self._lead, self._end = self._held[length:], "", Balance()
        self._state = "between"
        return True

    def _add_argument(self, text: str) -> None:
        if not text.strip():
            return
        try:
            name, value = self._python_argument(text) if self._python else _json_argument(text)
        except NoLiteral:
            message = f"the model wrote an argument of {self._tool.name!r} that can't be read"
            self._events.add(ToolCallError(message, text.strip()))
            return
        opening = ", " if self._num_arguments else "{"
        self._events.arguments(self.num_calls - 1, f"{opening}{json_text(name)}: {value}")
        self._num_arguments += 1

    def _python_argument(self, text: str) -> tuple[str, str]:
        """Name and JSON value of `name=literal`, or of a literal by its place among the parameters; NoLiteral."""
        if named := _ARGUMENT.fullmatch(text):
            return named[1], _python_value(named[2])
        properties = self._tool.parameters.get("properties")
        names = list(properties) if isinstance(properties, dict) else []
        self._num_positional += 1
        if self._num_positional > len(names):
            raise NoLiteral
        return names[self._num_positional - 1], _python_value(text)

    def _close_call(self) -> None:
        self._events.arguments(self.num_calls - 1, "}" if self._num_arguments else "{}")


def _read_call(text: str) -> tuple[str, str] | None:
    """Name and arguments from an object of another shape: fields in another order, arguments as text, Python quotes."""
    try:
        value = read_literal(text)
        name, arguments = value["name"], value.get("parameters", value.get("arguments"))
        arguments = read_literal(arguments) if isinstance(arguments, str) else arguments
        return (name, to_json(arguments)) if isinstance(name, str) and isinstance(arguments, dict) else None
    except (NoLiteral, KeyError, TypeError, AttributeError):
        return None


def _json_argument(text: str) -> tuple[str, str]:
    """Key and value of one member of an object. Raises NoLiteral."""
    member: Any = read_literal(f"{{{text}}}")
    if not isinstance(member, dict) or len(member) != 1:
        raise NoLiteral
    ((key, value),) = member.items()
    if not isinstance(key, str):
        raise NoLiteral
    return key, to_json(value)


def _python_value(text: str) -> str:
    """A literal of either notation as JSON; anything else, such as an unquoted word, as a string."""
    try:
        return to_json(read_literal(text))
    except NoLiteral:
        return json_text(text.strip())
