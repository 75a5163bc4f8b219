"""How many tokens of prompts a step may compute beside running streams, so that these keep their pace.

A controller with one number, the size of a chunk: after a step that took longer than the target the size falls in
proportion, after a shorter one that used the whole size it grows. It needs no model of the machine, and follows when
prompts get deeper, the batch larger, or another process takes a core.
"""

from __future__ import annotations

LEAST_TOKENS = 16  # fewer cost about as much, since the weights are read once for all of them
FALL, RISE = 0.25, 1.25  # the most that one step changes the size: one slow step may have been somebody else's fault
SMOOTHING = 0.2


class ChunkSize:
    """`target_s` is the time between two tokens of a running stream. Where decoding alone takes more than half of it,
    twice the time of decoding counts instead: a prompt must get on too.
    """

    def __init__(self, most: int, target_s: float) -> None:
        self._most = most
        self._target_s = target_s
        self._size = float(most)
        self._decode_s: float | None = None  # of a step without prompts

    @property
    def num_tokens(self) -> int:
        """The tokens of prompts that the next step may have beside running streams."""
        return max(min(LEAST_TOKENS, self._most), int(self._size))

    @property
    def target_s(self) -> float:
        return max(self._target_s, 2 * (self._decode_s or 0.0))

    def spare_s(self, *, beside_streams: bool) -> float:
        """Time of a step for pictures: beside running streams, half of what these leave, for prompts want some, too."""
        return (self.target_s - (self._decode_s or 0.0)) / 2 if beside_streams else self.target_s

    def measured(self, seconds: float, num_decoding: int, num_prompt_tokens: int) -> None:
        """A step took `seconds` for so many streams and so many tokens of prompts."""
        if not num_prompt_tokens:
            if num_decoding:
                before_s = seconds if self._decode_s is None else self._decode_s
                self._decode_s = before_s + SMOOTHING * (seconds - before_s)
            return
        fitting = num_prompt_tokens * self.target_s / max(seconds, 1e-9)  # if time were in proportion
        if not num_decoding:
            self._size = min(self._size, max(fitting, LEAST_TOKENS))  # a first guess, before a stream has to wait
        elif seconds > self.target_s or num_prompt_tokens >= self.num_tokens:
            # Not a short rest of a prompt, which says nothing about a whole chunk.
            size = min(max(fitting, FALL * self._size), RISE * self._size)
            self._size = min(max(size, LEAST_TOKENS), self._most)
