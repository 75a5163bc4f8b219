"""Runs a schedule without a model: a token generator that always says 77, and a clock that counts steps."""

from __future__ import annotations

from typing import Any

from musespark.engine.kv_cache import KVCache
from musespark.engine.scheduler import Scheduler
from musespark.engine.sequence import RequestState, Sequence, new_sequence
from tests.engine.driver import prompt_of, request
from tests.fakes import toy_config


class Simulation:
    """After every step the books must balance. `finished` says in which step a sequence had all its tokens."""

    def __init__(self, num_pages: int = 64, max_batch_tokens: int = 100, max_running: int = 8) -> None:
        config = toy_config(max_position_embeddings=65_536)
        self.cache = KVCache(config.text, num_pages, num_pages)
        self.scheduler = Scheduler(self.cache, max_batch_tokens=max_batch_tokens, max_running=max_running)
        self.names: dict[Sequence, str] = {}
        self.now = 0
        self.first_token: dict[str, int] = {}
        self.finished: dict[str, int] = {}
        self._arrivals = 0

    def add(self, name: str, length: int, *, n: int = 1, **fields: Any) -> list[Sequence]:
        self._arrivals += 1
        state = RequestState(request(prompt_of(length, self._arrivals), n=n, **({"max_tokens": 10_000} | fields)))
        sequences = [new_sequence(state, index, self._arrivals, self.cache, 320) for index in range(n)]
        for index, sequence in enumerate(sequences):
            self.names[sequence] = name if n == 1 else f"{name}{index}"
        self.scheduler.add(sequences[0])
        state.held = sequences[1:]
        return sequences

    def step(self, max_prompt_tokens: int | None = None) -> dict[str, int]:
        """One step; how many tokens of each were computed, in order."""
        self.now += 1
        chunks = self.scheduler.schedule(max_prompt_tokens)
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.end
            self.cache.commit(chunk.sequence.table, chunk.end)
            while chunk.samples and chunk.sequence.state.held:
                self.scheduler.add(chunk.sequence.state.held.pop(0))
        work = {self.names[chunk.sequence]: chunk.end - chunk.start for chunk in chunks}
        for sequence in [chunk.sequence for chunk in chunks if chunk.samples]:
            sequence.generated.append(77)
            self.first_token.setdefault(self.names[sequence], self.now)
            if sequence.num_generated == sequence.request.sampling.max_tokens:
                self.finished[self.names[sequence]] = self.now
                self.scheduler.remove(sequence)
                del self.names[sequence]
        self.cache.check_integrity(sequence.table for sequence in self.names)
        return work
