"""Runs an engine by hand and collects what its clients would see."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from musespark.chat.images import PatchedImage
from musespark.engine.engine import Engine
from musespark.engine.request import (
    FailedEvent,
    FinishEvent,
    FinishReason,
    Request,
    SampledToken,
    SamplingParams,
    StepEvent,
    TokenEvent,
    Usage,
    UsageEvent,
)
from musespark.errors import MuseSparkError

IDS = itertools.count()


class TokenOutput:
    """The plainest output: deltas are the tokens themselves."""

    reasoning_tokens = 0

    def __init__(self) -> None:
        self._new: list[object] = []

    def push(self, token: SampledToken) -> FinishReason | None:
        self._new.append(token)
        return None

    def finish(self, stop_token: int | None) -> None:
        pass

    def take(self) -> list[object]:
        new, self._new = self._new, []
        return new


def request(prompt: Sequence[int], max_tokens: int = 8, **fields: Any) -> Request:
    """Greedy unless told otherwise; fields of SamplingParams and of Request alike."""
    own = {name: fields.pop(name) for name in list(fields) if name in Request.__dataclass_fields__}
    sampling = SamplingParams(max_tokens=max_tokens, **({"temperature": 0.0} | fields))
    defaults = {"id": f"r{next(IDS)}", "make_output": lambda index: TokenOutput()}
    return Request(prompt=tuple(prompt), sampling=sampling, **(defaults | own))


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Ordinary tokens of the toy vocabulary."""
    return [int(token) for token in np.random.default_rng(seed).integers(32, 320, length)]


def picture(num_tokens: int, name: str = "a picture") -> PatchedImage:
    """An image of one row of cells."""
    digest = name.encode().ljust(32, b".")
    return PatchedImage(np.zeros((4 * num_tokens, 588), dtype=np.float32), (2, 2 * num_tokens), digest)


@dataclass
class Seen:
    """What the client of one request saw."""

    tokens: dict[int, list[SampledToken]] = field(default_factory=lambda: defaultdict(list))
    reasons: dict[int, FinishReason] = field(default_factory=dict)
    usage: Usage | None = None
    error: MuseSparkError | None = None

    @property
    def ended(self) -> bool:
        return self.usage is not None

    def ids(self, index: int = 0) -> list[int]:
        return [token.id for token in self.tokens[index]]


class Driver:
    """Steps an engine; after every step the books must balance."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.seen: dict[str, Seen] = defaultdict(Seen)

    def submit(self, new: Request) -> Seen:
        self.engine.submit(new)
        return self.seen[new.id]

    def step(self) -> None:
        self.take(self.engine.step())
        self.engine.check_integrity()

    def cancel(self, request_id: str) -> None:
        self.take(self.engine.cancel(request_id))
        self.engine.check_integrity()

    def run(self, max_steps: int = 10_000) -> None:
        for _ in range(max_steps):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError(f"still at work after {max_steps} steps")

    def take(self, events: Iterable[StepEvent]) -> None:
        for event in events:
            seen = self.seen[event.request_id]
            assert not seen.ended, "nothing comes after the last event"
            if isinstance(event, TokenEvent):
                assert event.index not in seen.reasons, "nothing comes after a choice has finished"
                seen.tokens[event.index] += event.deltas
            elif isinstance(event, FinishEvent):
                seen.reasons[event.index] = event.reason
            elif isinstance(event, UsageEvent):
                seen.usage = event.usage
            elif isinstance(event, FailedEvent):
                seen.usage, seen.error = event.usage, event.error


def run_alone(engine: Engine, new: Request) -> Seen:
    driver = Driver(engine)
    seen = driver.submit(new)
    driver.run()
    return seen


def no_pages_in_use(engine: Engine) -> bool:
    stats = engine.stats()
    return stats.full_pages.used == 0 and stats.sliding_pages.used == 0
