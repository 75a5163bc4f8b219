"""What /metrics shows of the engine: one plain snapshot, made in the engine's thread, read anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from musespark.engine.kv_cache import PageCounts
from musespark.engine.request import FinishReason


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


@dataclass(slots=True)
class Counters:
    """The growing numbers that the engine itself counts."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    overloaded: int = 0
    failed: int = 0
    finished: dict[FinishReason, int] = field(
        default_factory=lambda: {"stop": 0, "length": 0, "budget": 0, "cancelled": 0}
    )

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
        )
