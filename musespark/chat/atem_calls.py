"""Tool calls in the Muse families' notation, read as they are written.

    <atem:function_calls>
    <atem:invoke name="NAME">
    <atem:parameter name="KEY">VALUE</atem:parameter>
    </atem:invoke>
    </atem:function_calls>

It looks like XML and is not: a value is raw text up to its closing tag, and a closing tag counts only where the
notation can go on behind it, so a value may quote the notation. What models get wrong is read as they mean it: tags
without `>`, or with `<|message|>` in its place, missing and doubled closing tags, a parameter's name glued to the
tool's. Text outside of calls is content.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from musespark.chat import atem_grammar as grammar
from musespark.chat.deltas import EventList, ToolCallError, ToolCallStart
from musespark.chat.messages import Tool
from musespark.chat.tools import Toolbox, is_text, json_text, json_value

_CLOSE_CALL = "</atem:invoke>"


class AtemCalls:
    """Reads the bodies of the messages that one turn addresses to tools, and writes to `events`."""

    def __init__(self, tools: Toolbox, events: EventList, make_id: Callable[[], str]) -> None:
        self._tools = tools
        self._events = events
        self._make_id = make_id
        self._state: Literal["between", "call", "value", "unknown"] = "between"
        self._held = ""
        self._space = ""  # whitespace that only counts if text follows it
        self._in_text = False
        self._tool: Tool | None = None
        self._parameter: str | None = None  # the one whose value is read
        self._streams = False  # whether that value is a string, given out as it comes
        self._value: list[str] = []
        self._num_arguments = 0
        self.num_calls = 0

    def push(self, text: str) -> None:
        self._held += text
        steps = {"between": self._read_tag, "call": self._read_tag, "value": self._read_value, "unknown": self._skip}
        while self._held and steps[self._state]():
            pass

    def mark(self) -> None:
        """A `<|message|>` inside the body: models write it for the end of a tag. Anywhere else it says nothing."""
        tag = grammar.CLOSING_TAG_AT_END if self._state in ("value", "unknown") else grammar.OPEN_TAG_AT_END
        if tag.search(self._held):
            self.push(">")

    def end(self, *, whole: bool) -> None:
        """The body ends. A cut-off one (`whole` False) closes nothing: half a command must not pass for a command."""
        if self._state == "value":
            if closing := grammar.CLOSING_TAGS_AT_END.search(self._held):
                self._add_to_value(self._held[: closing.start()])
                self._close_value()
            else:
                self._add_to_value(self._held)
                if whole:
                    self._close_value()
                elif not self._streams:
                    self._events.arguments(self.num_calls - 1, "".join(self._value))
        elif self._state == "unknown":
            self._value.append(self._held)
            self._report_unknown()
        else:
            self._text(self._held)
        if whole and self._state == "call":
            self._close_call()
        self._state, self._held, self._space, self._in_text = "between", "", "", False

    # Each step reads one thing from the held text, and says whether there may be another.

    def _read_tag(self) -> bool:
        before, opening, _ = self._held.partition("<")
        self._text(before)
        self._held = self._held[len(before) :]
        if not opening:
            return False
        tag = grammar.TAG.match(self._held)
        if tag:
            self._space, self._in_text = "", False
            raw, self._held = tag[0], self._held[tag.end() :]
            self._act(raw, closes=bool(tag[1]), kind=tag[2], name=tag[3])
            return True
        if grammar.could_become_tag(self._held):
            return False
        self._text("<")
        self._held = self._held[1:]
        return True

    def _act(self, raw: str, *, closes: bool, kind: str | None, name: str | None) -> None:
        if kind == "parameter":
            if self._state == "call" and name and not closes:
                self._open_value(name)
            elif not closes:
                self._text(raw)  # a parameter of no call
            return
        if self._state == "call" and (closes or kind == "invoke"):
            self._close_call()
        if kind == "invoke" and not closes:
            self._open_call(raw, name or "")

    def _read_value(self) -> bool:
        end = grammar.VALUE_END.search(self._held)
        if end:
            self._add_to_value(self._held[: end.start()])
            self._held = self._held[end.end() :]
            self._close_value()
            return True
        certain = grammar.certain_length(self._held)
        self._add_to_value(self._held[:certain])
        self._held = self._held[certain:]
        return False

    def _skip(self) -> bool:
        """Past a call to no tool of ours."""
        at = self._held.find(_CLOSE_CALL)
        cut = len(self._held) - len(_CLOSE_CALL) + 1 if at < 0 else at + len(_CLOSE_CALL)
        self._value.append(self._held[: max(cut, 0)])
        self._held = self._held[max(cut, 0) :]
        if at >= 0:
            self._report_unknown()
        return at >= 0

    def _open_call(self, raw: str, name: str) -> None:
        match = self._tools.find(name.strip())
        if match is None:
            self._state, self._value = "unknown", [raw]
            return
        self._state, self._tool, self._num_arguments = "call", match.tool, 0
        self._events.add(ToolCallStart(self.num_calls, self._make_id(), match.tool.name))
        self.num_calls += 1
        if match.parameter is not None:
            self._open_value(match.parameter)

    def _open_value(self, parameter: str) -> None:
        assert self._tool is not None
        self._state, self._parameter, self._value = "value", parameter, []
        self._streams = is_text(self._tool, parameter)
        opening = f"{', ' if self._num_arguments else '{'}{json_text(parameter)}: "
        self._events.arguments(self.num_calls - 1, opening + '"' * self._streams)
        self._num_arguments += 1

    def _add_to_value(self, text: str) -> None:
        if self._streams:
            self._events.arguments(self.num_calls - 1, json_text(text)[1:-1])
        else:
            self._value.append(text)

    def _close_value(self) -> None:
        assert self._tool is not None
        assert self._parameter is not None
        written = '"' if self._streams else json_value("".join(self._value), self._tool, self._parameter)
        self._events.arguments(self.num_calls - 1, written)
        self._state = "call"

    def _close_call(self) -> None:
        self._events.arguments(self.num_calls - 1, "}" if self._num_arguments else "{}")
        self._state = "between"

    def _report_unknown(self) -> None:
        raw = "".join(self._value)
        name = re.search(r'name="?([^"<>\n]*)', raw)
        offered = ", ".join(self._tools.names)
        message = f"the model called {name[1] if name else raw!r}, which is none of the tools offered: {offered}"
        self._events.add(ToolCallError(message, raw))
        self._state = "between"

    def _text(self, text: str) -> None:
        """Text beside the tags, without the whitespace around it."""
        core = text.strip()
        if not core:
            self._space += text
            return
        lead = text[: len(text) - len(text.lstrip())]
        self._events.text("content", (self._space + lead if self._in_text else "") + core)
        self._space = text[len(text.rstrip()) :]
        self._in_text = True
