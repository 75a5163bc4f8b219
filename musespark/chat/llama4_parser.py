"""Llama 4's tokens as they come: content for the user, and calls to tools.

The stream starts right after the header of the assistant's turn. Only control tokens structure it, by id: the marks
`<|python_start|>` and `<|python_end|>` around calls, which the model often leaves out, and the ends `<|eom|>` and
`<|eot|>`. Calls are looked for only if tools were offered; `llama4_calls` reads them. The family does not reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from musespark.chat.deltas import Event, EventList, Kind, new_call_id
from musespark.chat.llama4_calls import Llama4Calls
from musespark.chat.messages import Tool
from musespark.chat.tokenizer import TextStream, Tokenizer
from musespark.chat.tools import Toolbox


class Llama4Parser:
    """Reads one generated turn; a `StreamParser`. Not shared between streams."""

    def __init__(
        self, tokenizer: Tokenizer, *, tools: Sequence[Tool] = (), make_id: Callable[[], str] = new_call_id
    ) -> None:
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer)
        self._events = EventList()
        toolbox = Toolbox(tools)
        self._calls = Llama4Calls(toolbox, self._events, make_id) if toolbox else None
        self._in_header = False
        self.in_reasoning = False
        self.reasoning_tokens = 0

    @property
    def body(self) -> Kind | Literal["tool"] | None:
        if self._in_header:
            return None
        return "content" if self._calls is None else self._calls.body

    @property
    def num_tool_calls(self) -> int:
        return 0 if self._calls is None else self._calls.num_calls

    def push(self, token_id: int) -> list[Event]:
        """Read one token; what it makes certain, often nothing."""
        if not self._tokenizer.is_special(token_id):
            self._read(self._stream.push(token_id))
            return self._events.take()
        self._read(self._stream.flush())
        name = self._tokenizer.special_name(token_id)
        if name in ("<|python_start|>", "<|python_end|>", "<|eom|>", "<|eot|>", "<|end_of_text|>", "<|header_start|>"):
            self._end(whole=True)
            if self._calls is not None:
                self._calls.begin(marked=name == "<|python_start|>")
        self._in_header = name == "<|header_start|>" or (self._in_header and name != "<|header_end|>")
        return self._events.take()

    def finish(self, *, whole: bool = False) -> list[Event]:
        """Say that no more tokens come: what was held back.

        `whole` if the model ended its turn, with a stop token that was not pushed; else a call it was in stays open.
        """
        self._read(self._stream.flush())
        self._end(whole=whole)
        return self._events.take()

    def _read(self, text: str) -> None:
        if self._in_header:
            return
        if self._calls is None:
            self._events.text("content", text)
        elif text:
            self._calls.push(text)

    def _end(self, *, whole: bool) -> None:
        if self._calls is not None:
            self._calls.end(whole=whole)
