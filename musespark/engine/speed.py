"""How fast a checkpoint runs here: prefill and decode through the engine, and what the memory could give at best.

Timed is `Engine.step` over a NativeRunner, as `musespark serve` runs it: scheduling, the native step, sampling (greedy)
and events. Tokens are random. `musespark bench` shows it to users; benchmarks/engine.py compares it with other engines.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter

import numpy as np

from musespark.engine.engine import Engine
from musespark.engine.native import NativeRunner, page_bytes, usable_cores
from musespark.engine.request import FailedEvent, FinishReason, Request, SampledToken, SamplingParams, TokenEvent
from musespark.engine.runner import PAGE_SIZE
from musespark.model.checkpoint import Checkpoint
from musespark.model.tensors import TEXT_PREFIXES, is_fused_experts
from musespark.model.weight_memory import Precision, stored_form, weight_bytes

MAX_BATCH_TOKENS = 512  # as serve has it
READ_BYTES = 256 << 20  # of each thread: far more than any cache
SPARE_TOKENS = 256  # what a stream generates while others still read their prompts


class EngineSpeed:
    """An engine of its own, with room for `streams` sequences of `context` tokens. `close` it in the end.

    Raises what NativeRunner raises.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        context: int,
        streams: int = 1,
        precision: Precision | None = None,
        threads: int | None = None,
    ) -> None:
        # One more than the streams: prompts of `decode` stay in the prefix cache while `prefill` needs pages as well.
        pages = (streams + 1) * (math.ceil(context / PAGE_SIZE) + 2) + MAX_BATCH_TOKENS // PAGE_SIZE
        self.runner = NativeRunner(
            checkpoint, precision=precision, num_full_pages=pages, num_sliding_pages=pages, num_threads=threads
        )
        self._engine = Engine(self.runner, max_batch_tokens=MAX_BATCH_TOKENS, max_running=max(16, streams))
        self._vocab_size = checkpoint.config.text.vocab_size
        self._ids = itertools.count()
        self.prefill(1)  # what is allocated once is allocated now

    def prefill(self, num_tokens: int) -> float:
        """Seconds from a prompt to its first token. No two calls have a prompt in common."""
        request = self._request(num_tokens, seed=(1, next(self._ids)), max_tokens=1)
        begun = time.perf_counter()
        self._engine.submit(request)
        while self._engine.has_work:
            self._step()
        return time.perf_counter() - begun

    def decode(self, depth: int, streams: int, count: int) -> float:
        """Seconds for `count` more tokens of each of `streams`, once all have read their prompts of `depth` tokens.

        The prompts are the same in every call: after the first they come from the prefix cache.
        """
        requests = [self._request(depth, seed=(0, i), max_tokens=2 * count + SPARE_TOKENS) for i in range(streams)]
        for request in requests:
            self._engine.submit(request)
        seen: set[str] = set()
        while len(seen) < streams:
            seen.update(self._step())
        done: Counter[str] = Counter()
        begun = time.perf_counter()
        while len(done) < streams or min(done.values()) < count:
            done.update(self._step())
        seconds = time.perf_counter() - begun
        for request in requests:
            self._engine.cancel(request.id)
        return seconds * streams * count / sum(done.values())  # a step may bring more than one token of a stream

    def close(self) -> None:
        self._engine.close()

    def _step(self) -> list[str]:
        """The request of each token that came."""
        events = self._engine.step()
        for event in events:
            if isinstance(event, FailedEvent):
                raise event.error
        return [event.request_id for event in events if isinstance(event, TokenEvent)]

    def _request(self, num_tokens: int, *, seed: tuple[int, int], max_tokens: int) -> Request:
        prompt = np.random.default_rng(seed).integers(0, self._vocab_size, num_tokens).tolist()
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        return Request(id=str(next(self._ids)), prompt=prompt, sampling=sampling, make_output=lambda _: _NoOutput())


class _NoOutput:
    """An `Output` that nobody reads."""

    reasoning_tokens = 0

    def push(self, token: SampledToken) -> FinishReason | None:
        return None

    def finish(self, stop_token: int | None) -> None: ...

    def take(self) -> list[object]:
        return [0]


def bytes_of_a_token(checkpoint: Checkpoint, precision: Precision, depth: int = 0) -> int:
    """Bytes that decoding one token of one stream must read: the weights that it meets, and K and V of `depth` tokens.

    Of experts, as many as a token is routed to; of the embedding, nothing but a row.
    """
    config = checkpoint.config
    shapes = {}
    for name in checkpoint.names():
        shape = checkpoint.shape(name)
        if is_fused_experts(name):
            shape = (config.text.num_experts_per_tok, *shape[1:])
        if (name.startswith(TEXT_PREFIXES) or "lm_head" in name) and ".embed_tokens." not in name:
            shapes[name] = shape
    weights = weight_bytes(shapes, lambda name: stored_form(checkpoint, name, precision), precision)
    full, local = page_bytes(config, precision)
    return weights + (depth * full + min(depth, config.text.local_span) * local) // PAGE_SIZE


def read_bandwidth(threads: int | None = None, seconds: float = 0.5) -> float:
    """Bytes a second that `threads` threads read from memory together, each from an array of its own.

    The largest of 2^25 integers is looked for: one pass over memory that a core does far faster than memory gives.
    """
    count = usable_cores() if threads is None else threads
    arrays = [np.zeros(READ_BYTES // 8, np.int64) for _ in range(count)]
    for array in arrays:
        array.fill(1)  # a page that was never written is the same page of zeros everywhere
    passes = [0] * count
    gate = threading.Barrier(count + 1)

    def read(i: int) -> None:
        arrays[i].max()
        gate.wait()
        while time.perf_counter() < end:
            arrays[i].max()
            passes[i] += 1

    workers = [threading.Thread(target=read, args=(i,)) for i in range(count)]
    for worker in workers:
        worker.start()
    end = time.perf_counter() + 60  # set again before the gate opens
    while gate.n_waiting < count:
        time.sleep(0.001)
    begun = time.perf_counter()
    end = begun + seconds
    gate.wait()
    for worker in workers:
        worker.join()
    return sum(passes) * READ_BYTES / (time.perf_counter() - begun)
