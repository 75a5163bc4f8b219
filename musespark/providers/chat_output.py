"""One choice of a chat, from tokens to events: reasoning, content and calls told apart, stop strings in content only.

Implements `musespark.engine.request.Output`; runs in the engine's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from musespark.chat.deltas import Delta, Event, StreamParser, ToolCallArguments, ToolCallError, ToolCallStart
from musespark.chat.tokenizer import TextStream, Tokenizer
from musespark.engine.output import StopStrings
from musespark.engine.request import FinishReason, SampledToken
from musespark.providers.base import ContentDelta, ReasoningDelta, TokenLogprob, ToolCallDelta


@dataclass(frozen=True, slots=True)
class Called:
    """The turn ended as the model wanted it, and holds calls. For `LocalStream`, which makes a finish reason of it."""

    index: int


class ChatOutput:
    """`parser` reads the turn of choice `index`; `end_ids` are the tokens by which the model itself ends one.

    `logprobs` says whether content deltas carry those of their tokens: each is sent with the text that it begins.
    A call to no tool that was offered is sent as content, the way the model wrote it.
    """

    def __init__(
        self,
        index: int,
        *,
        parser: StreamParser,
        tokenizer: Tokenizer,
        end_ids: frozenset[int],
        stop: Sequence[str],
        logprobs: bool,
    ) -> None:
        self._index = index
        self._parser = parser
        self._end_ids = end_ids
        self._stop = StopStrings(stop)
        self._logprobs = _ContentTokens(tokenizer) if logprobs else None
        self._num_sent = 0  # characters of content
        self._deltas: list[object] = []

    @property
    def reasoning_tokens(self) -> int:
        return self._parser.reasoning_tokens

    def push(self, token: SampledToken) -> FinishReason | None:
        deltas = self._parser.push(token.id)
        if self._logprobs is not None:
            self._logprobs.push(token, self._parser.body)
        self._add(deltas)
        return None if self._stop.stopped is None else "stop"

    def finish(self, stop_token: int | None) -> None:
        whole = stop_token in self._end_ids
        deltas = self._parser.finish(whole=whole)
        if self._stop.stopped is None:
            self._add(deltas)
            self._send(self._stop.flush(), last=True)
        if whole and self._parser.num_tool_calls:
            self._deltas.append(Called(self._index))

    def take(self) -> list[object]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def _add(self, deltas: Sequence[Event]) -> None:
        for delta in deltas:
            if self._stop.stopped is not None:
                return
            if isinstance(delta, ToolCallStart):
                self._deltas.append(ToolCallDelta(self._index, delta.index, delta.id, delta.name))
            elif isinstance(delta, ToolCallArguments):
                self._deltas.append(ToolCallDelta(self._index, delta.index, arguments=delta.json))
            elif isinstance(delta, Delta) and delta.kind == "reasoning":
                self._deltas.append(ReasoningDelta(self._index, delta.text))
            else:
                assert isinstance(delta, Delta | ToolCallError)
                self._send(self._stop.push(delta.text))

    def _send(self, text: str, *, last: bool = False) -> None:
        self._num_sent += len(text)
        tokens: tuple[TokenLogprob, ...] = ()
        if self._logprobs is not None:
            tokens = self._logprobs.take(None if last else self._num_sent)
        if text or tokens:
            self._deltas.append(ContentDelta(self._index, text, tokens))


class _ContentTokens:
    """Which of the tokens are content, and at which of its characters each begins."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer)
        self._num_characters = 0
        self._undecided: list[SampledToken] = []  # may turn out to be a header, or content without one
        self._waiting: list[tuple[int, SampledToken]] = []

    def push(self, token: SampledToken, body: str | None) -> None:
        """`body` is what the parser says of the text of `token`."""
        if self._tokenizer.is_special(token.id) or body in ("reasoning", "tool"):
            self._undecided.clear()
            self._num_characters += len(self._stream.flush())
            return
        self._undecided.append(token)
        if body == "content":
            for decided in self._undecided:
                self._waiting.append((self._num_characters, decided))
                self._num_characters += len(self._stream.push(decided.id))
            self._undecided.clear()

    def take(self, num_sent: int | None) -> tuple[TokenLogprob, ...]:
        """Those that begin before character `num_sent`, or all of them, once."""
        ready = [token for start, token in self._waiting if num_sent is None or start < num_sent]
        del self._waiting[: len(ready)]
        return tuple(self._describe(token) for token in ready)

    def _describe(self, token: SampledToken) -> TokenLogprob:
        assert token.logprob is not None
        top = tuple(self._name(token_id, logprob) for token_id, logprob in token.top)
        return self._name(token.id, token.logprob, top)

    def _name(self, token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        text = self._tokenizer.special_name(token_id)
        if text is not None:
            return TokenLogprob(text, text.encode(), logprob, top)
        data = self._tokenizer.token_bytes(token_id)
        return TokenLogprob(data.decode("utf-8", "replace"), data, logprob, top)
