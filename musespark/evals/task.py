"""What a task is, and what it finds: one outcome per item, a number that is better when higher.

A task that compares choices gives 0 or 1; one that measures bits per byte gives minus the bits. Every outcome names the
cluster that it shares an origin with, for errors that know of it; most are clusters of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from musespark.evals.model_under_test import Sampler, Scorer


@dataclass(frozen=True, slots=True)
class Outcome:
    """`details` go to the log: what was asked, what came, what was expected. `weight`: its share of the task's mean."""

    id: str
    value: float
    cluster: str = ""
    weight: float = 1.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Baselines:
    """What who knows nothing reaches: by guessing, and by always giving the commonest answer. None: not defined."""

    chance: float | None = None
    majority: float | None = None


class ScoredTask(Protocol):
    """Asks how likely texts are."""

    name: str
    needs: Literal["scorer"]
    unit: str

    def baselines(self) -> Baselines: ...

    def run(self, model: Scorer) -> Iterator[Outcome]: ...


class AnsweredTask(Protocol):
    """Asks for answers."""

    name: str
    needs: Literal["sampler"]
    unit: str

    def baselines(self) -> Baselines: ...

    def run(self, model: Sampler) -> Iterator[Outcome]: ...


Task = ScoredTask | AnsweredTask


@dataclass(frozen=True, slots=True)
class Source:
    """Where items come from: the data pack, and how many of a set are taken (None: all)."""

    data: Path
    limit: int | None = None
