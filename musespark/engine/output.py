"""Text as it may be sent: stop strings found across token borders, nothing sent that one might still take back.

`StopStrings` works on text alone, so that any provider can use it. `TextOutput` is the simplest `Output` (request.py):
tokens to text to stop strings. The chat protocol's output is built on the same parts in providers/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from musespark.chat.tokenizer import TextStream, Tokenizer
from musespark.engine.request import FinishReason, SampledToken
from musespark.errors import InvalidRequest

MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 512


class StopStrings:
    """Cuts a stream of text before the first stop string, however the text is split.

    Of several that match, the one that *ends* first wins, as if the text came one character at a time; of those that
    end together, the longest (it starts first). `push` costs O(new text + longest stop) times the number of stop
    strings. Raises InvalidRequest for an empty stop string, more than 4, or one above 512 characters.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if len(stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(f"{len(stop):,} stop strings, at most {MAX_STOP_STRINGS} are allowed", param="stop")
        for text in stop:
            if not 1 <= len(text) <= MAX_STOP_CHARS:
                raise InvalidRequest(
                    f"a stop string has {len(text):,} characters; 1 to {MAX_STOP_CHARS} are allowed", param="stop"
                )
        self._stop = tuple(stop)
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """The text that is safe to send now. After a match `stopped` names the stop string, and nothing more comes."""
        if self.stopped is not None:
            return ""
        self._held += text
        match = self._first_match()
        if match is not None:
            start, self.stopped = match
            safe, self._held = self._held[:start], ""
            return safe
        keep = self._length_of_possible_start()
        cut = len(self._held) - keep
        safe, self._held = self._held[:cut], self._held[cut:]
        return safe

    def flush(self) -> str:
        """The text held back, when the stream ends without a match."""
        held, self._held = self._held, ""
        return held

    def _first_match(self) -> tuple[int, str] | None:
        found = [(at + len(stop), -len(stop), at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if not found:
            return None
        _, _, start, stop = min(found)
        return start, stop

    def _length_of_possible_start(self) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text that became safe to send, and the tokens since the last delta (the text of some may come later)."""

    text: str
    tokens: tuple[SampledToken, ...]


class TextOutput:
    """Plain text of one choice. Deltas are `TextDelta`; nothing is sent while a stop string may still begin."""

    reasoning_tokens = 0

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._stream = TextStream(tokenizer)
        self._stop = StopStrings(stop)
        self._text = ""
        self._tokens: list[SampledToken] = []
        self._finished = False

    def push(self, token: SampledToken) -> FinishReason | None:
        self._tokens.append(token)
        self._text += self._stop.push(self._stream.push(token.id))
        return None if self._stop.stopped is None else "stop"

    def finish(self, stop_token: int | None) -> None:
        self._finished = True
        if self._stop.stopped is None:
            self._text += self._stop.push(self._stream.flush())
            self._text += self._stop.flush()

    def take(self) -> list[object]:
        nothing_new = not self._tokens if self._finished else True
        if not self._text and nothing_new:
            return []
        delta = TextDelta(self._text, tuple(self._tokens))
        self._text, self._tokens = "", []
        return [delta]
