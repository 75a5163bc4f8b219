"""What /metrics shows of the engine: one plain snapshot, made in the engine's thread, read anywhere."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from musespark.engine.kv_cache import PageCounts
from musespark.engine.request import FinishReason

# Seconds; from a prefix hit on a small model to a long prompt on a slow machine.
FIRST_TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[i]` observations were at most `bounds[i]` (not cumulative); the last count is of those above all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def total(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Numbers named `num_…_total` only grow; the others are the state after the last step."""

    ready: bool
    running: int
    waiting: int
    full_pages: PageCounts
    sliding_pages: PageCounts
    image_features_bytes: int
    num_images_encoded_total: int
    num_preemptions_total: int
    num_steps_total: int
    num_prompt_tokens_total: int
    num_cached_tokens_total: int
    num_generated_tokens_total: int
    num_overloaded_total: int
    num_failed_total: int  # requests
    num_finished_total: dict[FinishReason, int]  # choices
    first_token_s: Histogram


@dataclass(slots=True)
class Counters:
    """The growing numbers that the engine itself counts."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    overloaded: int = 0
    failed: int = 0
    finished: dict[FinishReason, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "cancelled": 0})
    first_token_counts: list[int] = field(default_factory=lambda: [0] * (len(FIRST_TOKEN_BOUNDS_S) + 1))
    first_token_sum_s: float = 0.0

    def first_token(self, seconds: float) -> None:
        self.first_token_counts[bisect_left(FIRST_TOKEN_BOUNDS_S, seconds)] += 1
        self.first_token_sum_s += seconds

    def snapshot(self, **now: Any) -> EngineStats:
        """All of it; `now` gives the fields of EngineStats that aren't counted here."""
        return EngineStats(
            **now,
            num_steps_total=self.steps,
            num_prompt_tokens_total=self.prompt_tokens,
            num_cached_tokens_total=self.cached_tokens,
            num_generated_tokens_total=self.generated_tokens,
            num_overloaded_total=self.overloaded,
            num_failed_total=self.failed,
            num_finished_total=dict(self.finished),
            first_token_s=Histogram(FIRST_TOKEN_BOUNDS_S, tuple(self.first_token_counts), self.first_token_sum_s),
        )
