"""The Muse families' tokens as they come, told apart: reasoning to itself, content for the user, calls to tools.

The stream starts right after the prompt's `<|start|>assistant` and holds messages ` to=RECIPIENT<|message|>BODY END`.
Only control tokens structure it, by id: the text `<|eot|>` is text. Text is given out as soon as it can't be part of a
header, so however an output is cut into tokens, its deltas join to the same strings. Calls are looked for only in the
bodies that are addressed to a tool, and only if tools were offered; `atem_calls` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from musespark.chat.atem_calls import AtemCalls
from musespark.chat.atem_tools import USER_RECIPIENTS
from musespark.chat.deltas import Delta, Event, EventList, Kind, new_call_id
from musespark.chat.dialect import Dialect
from musespark.chat.families import muse_spark
from musespark.chat.messages import Tool
from musespark.chat.tokenizer import TextStream, Tokenizer
from musespark.chat.tools import Toolbox

__all__ = ["ChatParser", "Delta", "Kind"]

# 128: a recipient is a function's name, at most 64 characters, with a namespace before it.
_RECIPIENT = re.compile(r"(?:assistant)? ?to=(\S{1,128})")
_RECIPIENT_SO_FAR = re.compile(r" ?(?:t(?:o(?:=\S{0,128})?)?)?")
_HEADER_AT_END = re.compile(r" (?:t(?:o(?:=\S{0,128})?)?)?\Z")


class ChatParser:
    """Reads one generated turn. Not shared between streams.

    in_reasoning: whether the token pushed last belongs to the reasoning, its end mark included.
    reasoning_tokens: how many did so far, with the headers that led to it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        tools: Sequence[Tool] = (),
        dialect: Dialect = muse_spark.DIALECT,
        make_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._tokenizer = tokenizer
        self._dialect = dialect
        self._message_id = tokenizer.special("<|message|>")
        self._start_id = tokenizer.special("<|start|>")
        self._end_ids = tokenizer.stop_token_ids | {tokenizer.special("<|eom|>")}
        self._stream = TextStream(tokenizer)
        self._events = EventList()
        self._tools = Toolbox(tools)
        self._calls = AtemCalls(self._tools, self._events, make_id)
        self._body: Kind | Literal["tool"] | None = None  # None while a header is read
        self._held = ""  # the header so far, or the end of a body that could still turn out to be a header
        self._thought_before = False  # in an earlier message
        self._between_thoughts = ""  # to be put before the next piece of reasoning
        self._num_header_tokens = 0
        self.in_reasoning = False
        self.reasoning_tokens = 0

    @property
    def body(self) -> Kind | Literal["tool"] | None:
        """What the text of the token pushed last belongs to; None for a header, or what could still become one."""
        return self._body

    @property
    def num_tool_calls(self) -> int:
        return self._calls.num_calls

    def push(self, token_id: int) -> list[Event]:
        """Read one token; what it makes certain, often nothing."""
        was_reasoning = self._body == "reasoning"
        if not self._tokenizer.is_special(token_id):
            self._read(self._stream.push(token_id))
        else:
            self._read(self._stream.flush())
            if token_id == self._message_id:
                self._open_body()
            elif token_id == self._start_id or token_id in self._end_ids:
                self._close_body(whole=True)
        self.in_reasoning = self._body == "reasoning" or (was_reasoning and token_id in self._end_ids)
        self._count(token_id)
        return self._events.take()

    def finish(self, *, whole: bool = False) -> list[Event]:
        """Say that no more tokens come: what was held back, if it was not a header.

        `whole` if the model ended its turn, with a stop token that was not pushed; else a call it was in stays open.
        """
        self._read(self._stream.flush())
        self._close_body(whole=whole)
        return self._events.take()

    def _read(self, text: str) -> None:
        self._held += text
        if self._body is None:
            if _could_become_header(self._held):
                return
            self._body = "content"  # a model that writes no header speaks to the user
        possible_header = _HEADER_AT_END.search(self._held)
        self._release(possible_header.start() if possible_header else len(self._held))

    def _open_body(self) -> None:
        """`<|message|>`: the text before it was a header, also where the end mark of the body before is missing."""
        header = _RECIPIENT.fullmatch(self._held)
        if self._body is not None and not header:
            if self._body == "tool":
                self._release(len(self._held))
                self._calls.mark()
            return  # a stray marker inside a body
        if self._body == "tool":
            self._calls.end(whole=True)
        self._body = self._body_for(header[1] if header else None)
        self._held = ""
        if self._body == "reasoning" and self._thought_before:
            self._between_thoughts = self._dialect.between_thoughts

    def _body_for(self, recipient: str | None) -> Kind | Literal["tool"]:
        if recipient is None:
            return "reasoning" if self._dialect.thinks_without_recipient else "content"
        if recipient == "self":
            return "reasoning"
        return "content" if recipient in USER_RECIPIENTS or not self._tools else "tool"

    def _close_body(self, *, whole: bool) -> None:
        if self._body is not None:
            self._release(len(self._held))
        if self._body == "tool":
            self._calls.end(whole=whole)
        self._body = None
        self._held = ""

    def _release(self, length: int) -> None:
        text, self._held = self._held[:length], self._held[length:]
        if not text:
            return
        assert self._body is not None
        if self._body == "tool":
            self._calls.push(text)
            return
        if self._body == "reasoning":
            text = self._between_thoughts + text
            self._between_thoughts, self._thought_before = "", True
        self._events.text(self._body, text)

    def _count(self, token_id: int) -> None:
        if self.in_reasoning:
            self.reasoning_tokens += self._num_header_tokens + 1
            self._num_header_tokens = 0
        elif self._body is None and token_id not in self._end_ids:
            self._num_header_tokens += 1
        else:
            self._num_header_tokens = 0


def _could_become_header(text: str) -> bool:
    return "assistant".startswith(text) or _RECIPIENT_SO_FAR.fullmatch(text.removeprefix("assistant")) is not None
