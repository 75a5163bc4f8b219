"""What changes while a request runs: `RequestState`, and for each of its `n` choices a `Sequence`."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from musespark.engine.kv_cache import BlockTable, KVCache
from musespark.engine.prefix import page_content, tokens_between
from musespark.engine.request import FinishReason, Output, Request, Timing, Usage
from musespark.engine.sampler import SamplingState

if TYPE_CHECKING:
    from musespark.engine.speculation import Drafting


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice: its tokens, how many of them are in the KV cache, and where."""

    state: RequestState
    index: int
    order: tuple[int, int, int]  # (priority, arrival, index): what goes first; the last is preempted first
    generated: list[int]
    output: Output
    sampling: SamplingState
    table: BlockTable
    is_running: bool = False
    num_computed: int = 0
    num_charged: int = 0  # up to here its tenant has been charged (fairness.py)
    finish_reason: FinishReason | None = None
    stop_token: int | None = None  # the one that ended it
    drafting: Drafting | None = None

    @property
    def request(self) -> Request:
        return self.state.request

    @property
    def num_uncomputed(self) -> int:
        """At least 1: the newest token is computed in the step after it was sampled."""
        return self.num_tokens - self.num_computed

    @property
    def num_tokens(self) -> int:
        return len(self.state.request.prompt) + len(self.generated)

    @property
    def num_generated(self) -> int:
        return len(self.generated)

    def tokens(self, start: int, end: int) -> Tokens[int]:
        """Those at positions [start, end): of the prompt, then what was generated."""
        return tokens_between(self.state.request.prompt, self.generated, start, end)


@dataclass(slots=True, eq=False)
class RequestState:
    """One request between submit and its last event."""

    request: Request
    submitted_s: float = 0.0
    started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    unfinished: list[Sequence] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    started: bool = False
    held: list[Sequence] = field(default_factory=list)  # until the first choice has computed the prompt for all
    cached_tokens: int = 0  # of the prompt, when the request first started
    prompt_tokens: int = 0  # of the prompt, computed or from the cache
    completion_tokens: int = 0
    asked_at: int | None = None  # how much was granted when an AllowanceEvent asked for more

    @property
    def tokens_left(self) -> float:
        """How many more tokens of all choices together are paid for."""
        allowance = self.request.allowance
        return math.inf if allowance is None else allowance.granted - self.completion_tokens

    @property
    def most_tokens(self) -> int:
        """The most that `completion_tokens` can become."""
        max_tokens = self.request.sampling.max_tokens
        return self.completion_tokens + sum(max_tokens - sequence.num_generated for sequence in self.unfinished)

    def timing(self) -> Timing:
        return Timing(
            queue_s=_between(self.submitted_s, self.started_s),
            prompt_s=_between(self.started_s, self.first_token_s),
            completion_s=_between(self.first_token_s, self.last_token_s),
        )

    def usage(self) -> Usage:
        num_cached = min(self.cached_tokens, self.prompt_tokens)  # less only if the first step failed
        return Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=num_cached,
            image_tokens=self.request.image_tokens_before(self.prompt_tokens),
            completion_tokens=self.completion_tokens,
            reasoning_tokens=sum(output.reasoning_tokens for output in self.outputs),
            cached_image_tokens=self.request.image_tokens_before(num_cached),
        )


def _between(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else end_s - start_s


def new_sequence(state: RequestState, index: int, arrival: int, cache: KVCache, vocab_size: int) -> Sequence:
    """Choice `index` of a request, before anything is computed. Raises what `make_output` raises."""
    request = state.request
    generated: list[int] = []
    sequence = Sequence(
        state=state,
        index=index,
        order=(request.priority, arrival, index),
        generated=generated,
        output=request.make_output(index),
        sampling=SamplingState(
            request.sampling, index, request.prompt, vocab_size, request.grammar.matcher() if request.grammar else None
        ),
        table=cache.new_table(request.salt, functools.partial(page_content, request, generated)),
    )
    state.outputs.append(sequence.output)
    return sequence
