"""Our engine in a process of its own, for measuring by turns: one JSON object a line in, one out.

    {"do": "load", "model": FOLDER, "threads": 2, "context": 33000, "streams": 1}   -> {"start_s": ..., ...}
    {"do": "prefill", "tokens": 512}                                      -> {"seconds": ...}
    {"do": "decode", "depth": 4096, "streams": 1, "count": 32}            -> {"seconds": ...}

What is timed is `Engine.step` over a NativeRunner, as `musespark serve` runs it: scheduling, the native step, sampling
(greedy) and events. Tokens are random. A prompt of `decode` is the same every time, so after the first it comes from
the prefix cache; of `prefill`, none is used twice.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from musespark.engine.engine import Engine
from musespark.engine.native import NativeRunner, build_info
from musespark.engine.request import FailedEvent, FinishReason, Request, SampledToken, SamplingParams, TokenEvent
from musespark.engine.runner import PAGE_SIZE
from musespark.model.checkpoint import open_checkpoint

MAX_BATCH_TOKENS = 512  # as serve has it


class NoOutput:
    """An `Output` that nobody reads."""

    reasoning_tokens = 0

    def push(self, token: SampledToken) -> FinishReason | None:
        return None

    def finish(self, stop_token: int | None) -> None: ...

    def take(self) -> list[object]:
        return [0]


class Ours:
    def __init__(self, folder: str | Path, *, threads: int, context: int, streams: int, precision: Any = None) -> None:
        begun = time.perf_counter()
        checkpoint = open_checkpoint(Path(folder), check_while_reading=True)
        # The prompts of `decode` stay in the prefix cache while `prefill` needs pages beside them.
        pages = (streams + 1) * (math.ceil(context / PAGE_SIZE) + 2) + MAX_BATCH_TOKENS // PAGE_SIZE
        self.runner = NativeRunner(
            checkpoint, precision=precision, num_full_pages=pages, num_sliding_pages=pages, num_threads=threads
        )
        self.engine = Engine(self.runner, max_batch_tokens=MAX_BATCH_TOKENS, max_running=max(16, streams))
        self.start_s = time.perf_counter() - begun
        self._ids = itertools.count()
        self._vocab_size = checkpoint.config.text.vocab_size
        self.prefill(8)  # what is allocated once is allocated now

    def describe(self) -> dict[str, Any]:
        runner = self.runner
        return {
            "version": f"musespark {metadata.version('musespark')}",
            "system": f"{runner.precision}, {runner.isa}, {build_info().get('compiler', '')}",
            "weight_bytes": runner.weight_bytes,
            "start_s": self.start_s,
        }

    def prefill(self, num_tokens: int) -> float:
        """Seconds from a prompt to its first token."""
        seed = next(self._ids)
        request = self._request(num_tokens, seed + 1_000_000, max_tokens=1)
        begun = time.perf_counter()
        self.engine.submit(request)
        while self.engine.has_work:
            self._step()
        return time.perf_counter() - begun

    def decode(self, depth: int, streams: int, count: int) -> float:
        """Seconds for `count` more tokens of each of `streams`, once all of them have begun."""
        requests = [self._request(depth, stream, max_tokens=2 * count + 256) for stream in range(streams)]
        for request in requests:
            self.engine.submit(request)
        seen: Counter[str] = Counter()
        while len(seen) < streams:
            seen.update(self._step())
        done: Counter[str] = Counter()
        begun = time.perf_counter()
        while len(done) < streams or min(done.values()) < count:
            done.update(self._step())
        seconds = time.perf_counter() - begun
        for request in requests:
            self.engine.cancel(request.id)
        return seconds * streams * count / sum(done.values())  # speculation may bring more than was asked for

    def _step(self) -> list[str]:
        """The requests that got a token, once for each."""
        events = self.engine.step()
        for event in events:
            if isinstance(event, FailedEvent):
                raise event.error
        return [event.request_id for event in events if isinstance(event, TokenEvent)]

    def _request(self, num_tokens: int, seed: int, *, max_tokens: int) -> Request:
        prompt = np.random.default_rng(seed).integers(32, self._vocab_size, num_tokens).tolist()
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        return Request(id=str(next(self._ids)), prompt=prompt, sampling=sampling, make_output=lambda _: NoOutput())


def main() -> None:
    ours: Ours | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "load":
            names = ("threads", "context", "streams")
            ours = Ours(request["model"], **{name: request[name] for name in names})
            answer = ours.describe()
        else:
            assert ours is not None
            if request["do"] == "prefill":
                answer = {"seconds": ours.prefill(request["tokens"])}
            else:
                answer = {"seconds": ours.decode(request["depth"], request["streams"], request["count"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
