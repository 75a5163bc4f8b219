"""Which tokens are computed in the next step.

Plain Python over plain state, so that it can be tested and simulated without a model. Five rules:

1. A step has a budget of tokens. Sequences that decode (one token each) come first, then prompts: of the lowest
   priority, there of the tenant that has had least (fairness.py), there those that have begun, then by arrival. A
   prompt may be cut anywhere. Beside sequences that decode, prompts get no more than the caller allows for the step.
2. A sequence starts when its whole prompt fits into the available pages, with one page to spare for each that runs
   already. Nobody overtakes one that must wait for pages.
3. If not even one token of a running sequence fits, the last in order loses its pages and waits again; what it had
   completed stays in the prefix cache as long as nobody needs the page. Without anyone behind it a sequence pauses.
4. Who can't start takes the place of a sequence of lower priority, or of a tenant that is far ahead and has more than
   one running sequence more.
5. Never is a token planned that the request's allowance does not pay for. A sequence that could only sample such a
   token pauses with its pages; if somebody else needs its place or its pages, it is the first to lose them.

The first in order that may go on always gets what it needs, so there is always progress.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from dataclasses import dataclass
from operator import attrgetter

from musespark.engine.fairness import GENERATED_TOKEN, PROMPT_TOKEN, FairShare
from musespark.engine.kv_cache import KVCache
from musespark.engine.runner import PAGE_SIZE
from musespark.engine.sequence import RequestState, Sequence
from musespark.errors import ConfigError

QUANTUM_STEPS = 4  # full steps that a tenant must be ahead before it gives up a place
BY_ORDER = attrgetter("order")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions [start, end) of a sequence, to be computed in this step; they have pages.

    `samples`: it reaches the last known token, so that the next one can be sampled. `draft` are guesses at the tokens
    from `end` on (speculation.py), which are computed, too.
    """

    sequence: Sequence
    start: int
    end: int
    samples: bool
    draft: tuple[int, ...] = ()


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
        self._fair = FairShare(QUANTUM_STEPS * max_batch_tokens)
        self._chunks: dict[Sequence, Chunk] = {}
        self._budget = 0
        self._planned: dict[RequestState, int] = {}  # tokens to be sampled in this step, of those with an allowance
        self._left: dict[RequestState, float] = {}  # what was paid for when this step was first asked about it

    @property
    def can_advance(self) -> bool:
        """Whether a step would compute anything: not if all that runs or may start waits for its allowance."""
        self._look_at_allowances()
        return any(not self._is_paused(sequence) for sequence in self.running) or any(
            self._is_paid(sequence.state) for sequence in self.waiting
        )

    @property
    def num_paused(self) -> int:
        """Running choices that wait for their allowances."""
        self._look_at_allowances()
        return sum(self._is_paused(sequence) for sequence in self.running if sequence.request.allowance is not None)

    def waiting_requests(self) -> Counter[str]:
        """For each tenant, the requests of which nothing has started yet."""
        return Counter(s.request.tenant for s in self.waiting if s.index == 0 and not s.state.started)

    def add(self, sequence: Sequence) -> None:
        self._fair.enter(sequence.request.tenant)
        self._wait(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out in whatever state it is; its pages are free at once."""
        (self.running if sequence.is_running else self.waiting).remove(sequence)
        sequence.is_running = False
        self._fair.leave(sequence.request.tenant)
        self._cache.release(sequence.table)

    def schedule(self, max_prompt_tokens: int | None = None) -> list[Chunk]:
        """The work of the next step, in the order of rule 1; empty only if there is nothing to do or all is paused.

        `max_prompt_tokens` (at least 1) is for prompts beside sequences that decode.
        """
        self._chunks = {}
        could_advance = self.can_advance
        self._budget = self._max_batch_tokens
        for sequence in [s for s in self.running if s.num_uncomputed == 1]:
            if sequence.is_running:  # it may just have been preempted
                self._advance(sequence)
        if self._chunks and max_prompt_tokens is not None:
            self._budget = min(self._budget, max_prompt_tokens)
        self._share_out([s for s in self.running if s.num_uncomputed > 1])
        assert self._chunks or not could_advance, "the first in order always fits"
        return list(self._chunks.values())

    def charge_accepted(self, sequence: Sequence) -> None:
        """A guess of a draft was right, and brought one more token."""
        self._fair.charge(sequence.request.tenant, GENERATED_TOKEN)

    # Prompts

    def _share_out(self, begun: list[Sequence]) -> None:
        """Give the rest of the budget to prompts, those that have begun and new ones."""
        may_start = True
        while self._budget >= 1:
            new = self._first_waiting() if may_start else None
            old = min(begun, key=self._turn) if begun else None
            if new is not None and (old is None or self._turn(new)[:2] < self._turn(old)[:2]):
                may_start = self._start(new)
            elif old is not None:
                begun.remove(old)
                if old.is_running:
                    self._advance(old)
            elif new is None:
                return

    def _turn(self, sequence: Sequence) -> tuple[int, float, tuple[int, int, int]]:
        return sequence.order[0], self._fair.counter(sequence.request.tenant), sequence.order

    def _first_waiting(self) -> Sequence | None:
        """The one that starts next, if there is one that is paid for."""
        paid = (sequence for sequence in self.waiting if self._is_paid(sequence.state))
        if self._fair.num_tenants <= 1:
            return next(paid, None)
        return min(paid, key=self._turn, default=None)

    def _start(self, sequence: Sequence) -> bool:
        while len(self.running) >= self._max_running:
            if not self._take_place_for(sequence):
                return False
        num_tokens = sequence.num_tokens
        reusable = (num_tokens - 1) // PAGE_SIZE  # the last token is always computed: its logits are wanted
        num_hit = self._cache.attach(sequence.table, reusable)
        while not self._cache.can_start(sequence.table, num_tokens, spare=len(self.running)):
            if not self._take_place_for(sequence):
                self._cache.release(sequence.table)
                return False
        sequence.num_computed = num_hit * PAGE_SIZE
        sequence.num_charged = max(sequence.num_charged, sequence.num_computed)
        state = sequence.state
        if not state.started:
            state.started = True
            state.cached_tokens = sequence.num_computed
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=BY_ORDER)
        sequence.is_running = True
        self._advance(sequence)
        return True

    # One sequence

    def _advance(self, sequence: Sequence) -> None:
        if self._is_paused(sequence):
            return
        start, table = sequence.num_computed, sequence.table
        most = sequence.num_uncomputed - (not self._is_paid(sequence.state))
        num_tokens = min(most, self._budget)
        if not self._cache.has_pages(table, start + num_tokens):
            while (room := self._cache.room(table, start)) < 1 and self._make_room(sequence):
                pass
            num_tokens = min(most, self._budget, room)  # a preemption gives budget back, too
            self._cache.extend(table, start + num_tokens)
        if num_tokens < 1:
            return
        end = start + num_tokens
        chunk = self._chunks[sequence] = Chunk(sequence, start, end, end == sequence.num_tokens)
        if chunk.samples and sequence.request.allowance is not None:
            self._planned[sequence.state] = self._planned.get(sequence.state, 0) + 1
        self._budget -= num_tokens
        self._charge(chunk)

    def _charge(self, chunk: Chunk) -> None:
        """What is computed a second time, and generated tokens when they are computed, cost nothing."""
        sequence = chunk.sequence
        cost = GENERATED_TOKEN * chunk.samples
        if sequence.num_charged < chunk.end:
            cost += PROMPT_TOKEN * max(0, min(chunk.end, len(sequence.request.prompt)) - sequence.num_charged)
            sequence.num_charged = chunk.end
        self._fair.charge(sequence.request.tenant, cost)

    def _look_at_allowances(self) -> None:
        """Begin a plan. It sees each allowance once: other threads may grant at any moment, and what was passed over as
        paused must stay so until the plan is made, or nobody could have its pages."""
        self._planned.clear()
        self._left.clear()

    def _is_paid(self, state: RequestState) -> bool:
        """Whether one more token of the request may be sampled in this step."""
        if state.request.allowance is None:
            return True
        return self._planned.get(state, 0) < self._left.setdefault(state, state.tokens_left)

    def _is_paused(self, sequence: Sequence) -> bool:
        return sequence.num_uncomputed == 1 and sequence not in self._chunks and not self._is_paid(sequence.state)

    # Preemption

    def _make_room(self, sequence: Sequence) -> bool:
        """Preempt one that is behind `sequence` or can't use its pages, if there is one."""
        if self._preempt_paused():
            return True
        if self.running[-1] is sequence:
            return False
        self._preempt(self.running[-1])
        return True

    def _take_place_for(self, new: Sequence) -> bool:
        """Preempt one whose place the waiting `new` should have, if there is one (rules 4 and 5)."""
        if self._preempt_paused():
            return True
        priority, tenant = new.order[0], new.request.tenant
        last = self.running[-1] if self.running else None
        if last is not None and last.order[0] > priority:
            self._preempt(last)
            return True
        if self._fair.num_tenants > 1:
            num_running = Counter(sequence.request.tenant for sequence in self.running)
            for sequence in reversed(self.running):
                holder = sequence.request.tenant
                unequal = num_running[holder] > num_running[tenant] + 1
                if unequal and sequence.order[0] == priority and self._fair.is_ahead(holder, tenant):
                    self._preempt(sequence)
                    return True
        return False

    def _preempt_paused(self) -> bool:
        """Take place and pages of the last sequence that can't use them now, if there is one."""
        for sequence in reversed(self.running):
            if self._is_paused(sequence):
                self._preempt(sequence)
                return True
        return False

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        sequence.is_running = False
        chunk = self._chunks.pop(sequence, None)
        if chunk is not None:
            self._budget += chunk.end - chunk.start
            if sequence.state in self._planned:
                self._planned[sequence.state] -= chunk.samples
        self._cache.release(sequence.table)
        sequence.num_computed = 0
        self._wait(sequence)
        self.num_preemptions += 1

    def _wait(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=BY_ORDER)
