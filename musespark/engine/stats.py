"""What /metrics shows of the engine: one plain snapshot, made in the engine's thread, read anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from musespark.engine.kv_cache import PageCounts
from musespark.engine.request import FinishReason, Timing

RECENT_S = 10


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
    num_drafted_tokens_total: int  # guesses (speculation.py), and those of them that were right
    num_accepted_tokens_total: int
    num_overloaded_total: int
    num_failed_total: int  # requests
    num_finished_total: dict[FinishReason, int]  # choices
    paused: int  # choices that wait for their allowances
    prompt_tokens_per_step: int  # how many may be computed beside running streams
    step_s_total: float
    queue_s_total: float  # of requests that have ended, as in Timing
    prompt_s_total: float
    completion_s_total: float
    recent_tokens: tuple[tuple[int, int], ...]  # (second of the clock, tokens generated in it), of the last ones

    def tokens_per_s(self, now_s: float) -> float:
        """Generated in the last whole seconds before `now_s`, on average."""
        last = int(now_s)
        return sum(count for second, count in self.recent_tokens if last - RECENT_S <= second < last) / RECENT_S


@dataclass(slots=True)
class Counters:
    """The growing numbers that the engine itself counts."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    overloaded: int = 0
    failed: int = 0
    step_s: float = 0.0
    queue_s: float = 0.0
    prompt_s: float = 0.0
    completion_s: float = 0.0
    recent: dict[int, int] = field(default_factory=dict)
    finished: dict[FinishReason, int] = field(
        default_factory=lambda: {"stop": 0, "length": 0, "budget": 0, "cancelled": 0}
    )

    def generated(self, now_s: float) -> None:
        """One more token."""
        self.generated_tokens += 1
        second = int(now_s)
        if second not in self.recent:
            self.recent = {old: count for old, count in self.recent.items() if old >= second - RECENT_S}
            self.recent[second] = 0
        self.recent[second] += 1

    def ended(self, timing: Timing) -> None:
        """A request has."""
        self.queue_s += timing.queue_s or 0.0
        self.prompt_s += timing.prompt_s or 0.0
        self.completion_s += timing.completion_s or 0.0

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
            step_s_total=self.step_s,
            queue_s_total=self.queue_s,
            prompt_s_total=self.prompt_s,
            completion_s_total=self.completion_s,
            recent_tokens=tuple(self.recent.items()),
        )
