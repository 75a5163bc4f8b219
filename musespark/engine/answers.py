"""The requests between submit and their last event: what each step adds to them, and how they end.

Every request ends once: all its choices finish and a UsageEvent follows, or a FailedEvent says what went wrong. What an
output raises, or what is wrong with one row, ends its own request only. A request that has used up an allowance which
will not grow any more ends with "budget"; one that is about to use it up asks for more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from musespark.engine.admission import Pace
from musespark.engine.features import ImageFeatures
from musespark.engine.request import (
    AllowanceEvent,
    FailedEvent,
    FinishEvent,
    FinishReason,
    SampledToken,
    StepEvent,
    TokenEvent,
    UsageEvent,
)
from musespark.engine.scheduler import Chunk, Scheduler
from musespark.engine.sequence import RequestState, Sequence
from musespark.engine.stats import Counters
from musespark.errors import EngineFailed, MuseSparkError

log = logging.getLogger(__name__)


class Answers:
    """`states` are all requests by id, `now_s` the time of the tokens that are pushed: the engine sets it."""

    def __init__(
        self,
        scheduler: Scheduler,
        features: ImageFeatures,
        counters: Counters,
        pace: Pace,
        clock: Callable[[], float],
    ) -> None:
        self.states: dict[str, RequestState] = {}
        self.now_s = 0.0
        self._scheduler = scheduler
        self._features = features
        self._counters = counters
        self._pace = pace
        self._clock = clock
        self._with_allowance: dict[str, RequestState] = {}
        self._events: list[StepEvent] = []

    @property
    def review_is_due(self) -> bool:
        """Whether `review_allowances` would do anything."""
        return any(self._review_is_due(state) for state in self._with_allowance.values())

    def add(self, state: RequestState) -> None:
        """A request was admitted."""
        request = state.request
        self.states[request.id] = state
        if request.allowance is not None:
            self._with_allowance[request.id] = state
            request.allowance.usage = state.usage

    def push(self, sequence: Sequence, token: SampledToken) -> None:
        """Give a choice its next token."""
        state, params = sequence.state, sequence.request.sampling
        sequence.generated.append(token.id)
        sequence.sampling.count(token.id)
        state.last_token_s = self.now_s
        if state.first_token_s is None:
            state.first_token_s = self.now_s
        self._counters.generated(self.now_s)
        state.completion_tokens += 1
        if token.id in params.stop_token_ids and not params.ignore_eos:
            sequence.finish_reason, sequence.stop_token = "stop", token.id
            return
        try:
            sequence.finish_reason = sequence.output.push(token)
            self._emit_deltas(sequence)
        except Exception as error:
            self._fail_output(state, error)
        if sequence.finish_reason is None and sequence.num_generated >= params.max_tokens:
            sequence.finish_reason = "length"

    def finish(self, chunks: list[Chunk]) -> None:
        """End the choices of `chunks` that have reached their end."""
        for chunk in chunks:
            if chunk.sequence.finish_reason is not None and chunk.sequence in chunk.sequence.state.unfinished:
                self.end(chunk.sequence, chunk.sequence.finish_reason)

    def review_allowances(self) -> None:
        """End what has used up all that will ever be paid for, and ask for more where little is left."""
        for state in list(self._with_allowance.values()):
            if not self._review_is_due(state):
                continue
            allowance = state.request.allowance
            assert allowance is not None
            if not allowance.final:
                state.asked_at = allowance.granted
                self._events.append(AllowanceEvent(state.request.id, state.completion_tokens, state.asked_at))
                continue
            while state.unfinished:
                self.end(state.unfinished[0], "budget")

    @staticmethod
    def _review_is_due(state: RequestState) -> bool:
        allowance = state.request.allowance
        assert allowance is not None
        if allowance.final:  # asked first: nothing is granted after that, so the rest can't be out of date
            return state.tokens_left <= 0
        if state.asked_at == allowance.granted or allowance.granted >= state.most_tokens:
            return False
        return state.tokens_left <= 0 or 2 * state.tokens_left < allowance.last_grant

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """The last events of one choice, and of the request after its last choice."""
        state = sequence.state
        self._take_out(sequence)
        state.unfinished.remove(sequence)
        try:
            sequence.output.finish(sequence.stop_token)
            self._emit_deltas(sequence)
            self._events.append(FinishEvent(state.request.id, sequence.index, reason))
            self._counters.finished[reason] += 1
            if not state.unfinished:
                self._events.append(UsageEvent(state.request.id, state.usage(), state.timing()))
                self._forget_request(state)
        except Exception as error:
            self._fail_output(state, error)

    def fail(self, state: RequestState, error: MuseSparkError) -> None:
        """The last event of a request that can't go on."""
        for sequence in state.unfinished:
            self._take_out(sequence)
        state.unfinished.clear()
        self._events.append(FailedEvent(state.request.id, error, state.usage()))
        self._counters.failed += 1
        self._forget_request(state)

    def _take_out(self, sequence: Sequence) -> None:
        if sequence in sequence.state.held:
            sequence.state.held.remove(sequence)
        else:
            self._scheduler.remove(sequence)

    def _forget_request(self, state: RequestState) -> None:
        del self.states[state.request.id]
        self._with_allowance.pop(state.request.id, None)
        self._features.forget_request(state.request.id)
        self._counters.prompt_tokens += state.prompt_tokens
        self._counters.ended(state.timing())
        self._counters.cached_tokens += state.cached_tokens
        self._pace.request_ended(self._clock())
        if not self.states:
            self._pace.idle()

    def _fail_output(self, state: RequestState, error: Exception) -> None:
        """Whatever an output raises ends its own request only."""
        log.error("the output of request %r failed", state.request.id, exc_info=error)
        self.fail(state, EngineFailed(f"the answer could not be read ({type(error).__name__})"))

    def _emit_deltas(self, sequence: Sequence) -> None:
        deltas = sequence.output.take()
        if deltas:
            self._events.append(TokenEvent(sequence.request.id, sequence.index, tuple(deltas)))

    def take_events(self) -> list[StepEvent]:
        """What is new since the last call, in order for each choice."""
        events, self._events = self._events, []
        return events
