"""Where a run stands: its phase, its step, and when to move on if the time is limited.

The steps that finished phases really took are kept, for the data plan counts rows by them. With a time limit the steps
of a recipe are proportions: a phase at a constant learning rate ends when its share of the time is used up, one with a
falling rate is given the steps that fit into what is left. A phase that trains the vision tower alone is short, has
quick steps, and keeps their number.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from musespark.training.recipe import Recipe


@dataclass(slots=True)
class Progress:
    phase: int = 0
    step: int = 0  # next step of the phase
    finished: list[int] = field(default_factory=list)  # steps that the phases before took
    steps: int = 0  # of the current phase, as planned when it began
    total_steps: int = 0
    tokens: int = 0  # seen by the network, padding not counted
    targets: int = 0  # tokens that were learned
    started_at: float = 0.0  # wall clock (s since 1970) of the first start; a pause counts against the time limit
    step_time_s: float = 0.0  # running mean

    @classmethod
    def begin(cls, recipe: Recipe) -> Progress:
        return cls(steps=recipe.phases[0].steps, started_at=time.time())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def done(self, recipe: Recipe) -> bool:
        return self.phase == len(recipe.phases)

    def lr_scale(self, recipe: Recipe) -> float:
        """Fraction of the peak learning rate at this step."""
        phase = recipe.phases[self.phase]
        scale = phase.lr_start + (phase.lr_end - phase.lr_start) * self.step / max(self.steps, 1)
        return scale * min(1.0, (self.total_steps + 1) / recipe.warmup_steps)

    def seconds_left(self, recipe: Recipe) -> float:
        """Until the run ends: by the clock if time is limited, else by the steps that remain."""
        if recipe.time_limit_s is not None:
            return self.started_at + recipe.time_limit_s - time.time()
        later = sum(phase.steps for phase in recipe.phases[self.phase + 1 :])
        return (self.steps - self.step + later) * self.step_time_s

    def advance(self, recipe: Recipe, *, seconds: float) -> bool:
        """Count one finished step that took `seconds`; go on to the next phase when this one is over. True if so."""
        self.step += 1
        self.total_steps += 1
        self.step_time_s = seconds if self.total_steps <= 3 else 0.95 * self.step_time_s + 0.05 * seconds
        if self.step < self.steps and not self._share_is_used_up(recipe):
            return False
        self.finished.append(self.step)
        self.phase, self.step = self.phase + 1, 0
        if not self.done(recipe):
            self.steps = self._steps_that_fit(recipe)
        return True

    def _share_is_used_up(self, recipe: Recipe) -> bool:
        """Only at a constant learning rate: where it falls, the phase keeps its number of steps, to reach the end."""
        phase = recipe.phases[self.phase]
        if recipe.time_limit_s is None or phase.lr_start != phase.lr_end or phase.trains == "vision":
            return False
        steps = _timed_steps(recipe)
        return self.seconds_left(recipe) <= recipe.time_limit_s * sum(steps[self.phase + 1 :]) / sum(steps)

    def _steps_that_fit(self, recipe: Recipe) -> int:
        phase = recipe.phases[self.phase]
        if recipe.time_limit_s is None or phase.trains == "vision":
            return phase.steps
        steps = _timed_steps(recipe)[self.phase :]
        fitting = self.seconds_left(recipe) / self.step_time_s * steps[0] / sum(steps)
        return max(1, int(fitting))


def _timed_steps(recipe: Recipe) -> list[int]:
    """The steps of each phase as shares of the time limit."""
    return [0 if phase.trains == "vision" else phase.steps for phase in recipe.phases]
