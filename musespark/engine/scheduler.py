"""Which tokens are computed in the next step.

Plain Python over plain state, so that it can be tested and simulated without a model. Three rules:

1. A step has a budget of tokens. Sequences that decode (one token each) come first, then prompts that have begun, then
   new ones, always in the order (priority, arrival). A prompt may be cut anywhere.
2. A sequence starts when its whole prompt fits into the available pages, with one page to spare for each that runs
   already. Nobody overtakes one that must wait for pages.
3. If not even one token of a running sequence fits, the last in order loses its pages and waits again; what it had
   completed stays in the prefix cache as long as nobody needs the page. Without anyone behind it a sequence pauses.
4. Never is a token planned that the request's allowance does not pay for. A sequence that could only sample such a
   token pauses with its pages; if somebody else needs its place or its pages, it is the first to lose them.

The first in order that may go on always gets what it needs, so there is always progress.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from dataclasses import dataclass

from musespark.engine.kv_cache import KVCache
from musespark.engine.runner import PAGE_SIZE
from musespark.engine.sequence import RequestState, Sequence
from musespark.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions [start, end) of a sequence, to be computed in this step; they have pages."""

    sequence: Sequence
    start: int
    end: int

    @property
    def samples(self) -> bool:
        """Whether it reaches the last known token, so that the next one can be sampled."""
        return self.end == len(self.sequence.tokens)


class Scheduler:
    """The waiting and the running sequences, each in order."""

    def __init__(self, cache: KVCache, *, max_batch_tokens: int, max_running: int) -> None:
        if not 1 <= max_running <= max_batch_tokens:
            raise ConfigError(
                f"max_running is {max_running}; it must be from 1 to max_batch_tokens ({max_batch_tokens}), so that "
                "every running sequence gets a token in each step"
            )
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._cache = cache
        self._max_batch_tokens = max_batch_tokens
        self._max_running = max_running
        self._chunks: dict[Sequence, Chunk] = {}
        self._budget = 0
        self._planned: Counter[RequestState] = Counter()  # tokens to be sampled in this step

    @property
    def num_waiting_requests(self) -> int:
        """Requests of which nothing has started yet."""
        return sum(sequence.index == 0 and not sequence.state.started for sequence in self.waiting)

    @property
    def can_advance(self) -> bool:
        """Whether a step would compute anything: not if all that runs or may start waits for its allowance."""
        self._planned.clear()
        return any(not self._is_paused(sequence) for sequence in self.running) or any(
            sequence.may_start and self._is_paid(sequence.state) for sequence in self.waiting
        )

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=lambda s: s.order)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out in whatever state it is; its pages are free at once."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._cache.release(sequence.table)

    def schedule(self) -> list[Chunk]:
        """The work of the next step, in the order of rule 1; empty only if there is nothing to do or all is paused."""
        self._chunks = {}
        self._planned.clear()
        self._budget = self._max_batch_tokens
        decoding = [sequence for sequence in self.running if sequence.num_uncomputed == 1]
        prefilling = [sequence for sequence in self.running if sequence.num_uncomputed > 1]
        for sequence in decoding + prefilling:
            if sequence in self.running:  # it may just have been preempted
                self._advance(sequence)
        self._start_waiting()
        assert self._chunks or not self.can_advance, "the first in order always fits"
        return list(self._chunks.values())

    def _advance(self, sequence: Sequence) -> None:
        if self._is_paused(sequence):
            return
        room = self._cache.room(sequence.table, sequence.num_computed)
        while room < 1 and self._make_room(sequence):
            room = self._cache.room(sequence.table, sequence.num_computed)
        most = sequence.num_uncomputed - (not self._is_paid(sequence.state))
        num_tokens = min(most, self._budget, room)
        if num_tokens < 1:
            return
        end = sequence.num_computed + num_tokens
        self._cache.extend(sequence.table, end)
        chunk = self._chunks[sequence] = Chunk(sequence, sequence.num_computed, end)
        self._planned[sequence.state] += chunk.samples
        self._budget -= num_tokens

    def _make_room(self, sequence: Sequence) -> bool:
        """Preempt one that is behind `sequence` or can't use its pages, if there is one."""
        if self._preempt_paused():
            return True
        if self.running[-1] is sequence:
            return False
        self._preempt(self.running[-1])
        return True

    def _is_paid(self, state: RequestState) -> bool:
        """Whether one more token of the request may be sampled in this step."""
        return self._planned[state] < state.tokens_left

    def _is_paused(self, sequence: Sequence) -> bool:
        return sequence.num_uncomputed == 1 and sequence not in self._chunks and not self._is_paid(sequence.state)

    def _preempt_paused(self) -> bool:
        """Take place and pages of the last sequence that can't use them now, if there is one."""
        for sequence in reversed(self.running):
            if self._is_paused(sequence):
                self._preempt(sequence)
                return True
        return False

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        chunk = self._chunks.pop(sequence, None)
        if chunk is not None:
            self._budget += chunk.end - chunk.start
            self._planned[sequence.state] -= chunk.samples
        self._cache.release(sequence.table)
        sequence.num_computed = 0
        self.add(sequence)
        self.num_preemptions += 1

    def _start_waiting(self) -> None:
        for sequence in [s for s in self.waiting if s.may_start]:
            if not self._is_paid(sequence.state):
                continue
            if self._budget < 1:
                return
            if len(self.running) >= self._max_running and not self._preempt_paused():
                return
            if not self._start(sequence):
                return

    def _start(self, sequence: Sequence) -> bool:
        num_tokens = len(sequence.tokens)
        reusable = (num_tokens - 1) // PAGE_SIZE  # the last token is always computed: its logits are wanted
        num_hit = self._cache.attach(sequence.table, reusable)
        while not self._cache.can_start(sequence.table, num_tokens, spare=len(self.running)):
            if not self._preempt_paused():
                self._cache.release(sequence.table)
                return False
        sequence.num_computed = num_hit * PAGE_SIZE
        state = sequence.state
        if not state.started:
            state.started = True
            state.cached_tokens = sequence.num_computed
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=lambda s: s.order)
        self._advance(sequence)
        return True
