"""The model's tokens as they come, told apart: reasoning to itself, content for the user.

The stream starts right after the prompt's `<|start|>assistant` and holds messages ` to=RECIPIENT<|message|>BODY END`.
Only control tokens structure it, by id: the text `<|eot|>` is text. Text is given out as soon as it can't be part of a
header, so however an output is cut into tokens, its deltas join to the same strings. A body to a tool is content here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from musespark.chat.tokenizer import TextStream, Tokenizer

Kind = Literal["reasoning", "content"]

# 128: a recipient is a function's name, at most 64 characters, with a namespace before it.
_RECIPIENT = re.compile(r"(?:assistant)? ?to=(\S{1,128})")
_RECIPIENT_SO_FAR = re.compile(r" ?(?:t(?:o(?:=\S{0,128})?)?)?")
_HEADER_AT_END = re.compile(r" (?:t(?:o(?:=\S{0,128})?)?)?\Z")


@dataclass(frozen=True, slots=True)
class Delta:
    kind: Kind
    text: str


class ChatParser:
    """Reads one generated turn. Not shared between streams.

    in_reasoning: whether the token pushed last belongs to the reasoning, its end mark included.
    reasoning_tokens: how many did so far, with the headers that led to it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._message_id = tokenizer.special("<|message|>")
        self._start_id = tokenizer.special("<|start|>")
        self._end_ids = tokenizer.stop_token_ids | {tokenizer.special("<|eom|>")}
        self._stream = TextStream(tokenizer)
        self._body: Kind | None = None  # None while a header is read
        self._held = ""  # the header so far, or the end of a body that could still turn out to be a header
        self._deltas: list[Delta] = []
        self._num_header_tokens = 0
        self.in_reasoning = False
        self.reasoning_tokens = 0

    @property
    def body(self) -> Kind | None:
        """What the text of the token pushed last belongs to; None for a header, or what could still become one."""
        return self._body

    def push(self, token_id: int) -> list[Delta]:
        """Read one token; what it makes certain: nothing, or one delta."""
        was_reasoning = self._body == "reasoning"
        if not self._tokenizer.is_special(token_id):
            self._read(self._stream.push(token_id))
        else:
            self._read(self._stream.flush())
            if token_id == self._message_id:
                self._open_body()
            elif token_id == self._start_id or token_id in self._end_ids:
                self._close_body()
        self.in_reasoning = self._body == "reasoning" or (was_reasoning and token_id in self._end_ids)
        self._count(token_id)
        return self._take()

    def finish(self) -> list[Delta]:
        """Say that no more tokens come: what was held back, if it was not a header."""
        self._read(self._stream.flush())
        self._close_body()
        return self._take()

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
            return  # a stray marker inside a body
        # Muse Spark thinks in a message without recipient.
        self._body = "content" if header and header[1] != "self" else "reasoning"
        self._held = ""

    def _close_body(self) -> None:
        if self._body is not None:
            self._release(len(self._held))
        self._body = None
        self._held = ""

    def _release(self, length: int) -> None:
        text, self._held = self._held[:length], self._held[length:]
        if not text:
            return
        assert self._body is not None
        if self._deltas and self._deltas[-1].kind == self._body:
            text = self._deltas.pop().text + text
        self._deltas.append(Delta(self._body, text))

    def _take(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

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
