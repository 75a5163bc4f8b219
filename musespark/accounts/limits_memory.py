"""Limits counted in the memory of one process: a dictionary under a lock, some microseconds a request."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from musespark.accounts.limits import EMPTY, Bucket, Cap, Rate, Standing, Unit, add, check, check_cap, standing

SWEEP_EVERY = 10_000  # new buckets between two searches for those that are empty again


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class MemoryLimitStore:
    """`now_ms` never goes back: the monotonic clock, unless a test turns it."""

    def __init__(self, now_ms: Callable[[], int] = monotonic_ms) -> None:
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[Rate, Bucket]] = {}
        self._running: Counter[str] = Counter()
        self._subjects: dict[str, tuple[str, ...]] = {}  # of each running request
        self._until_sweep = SWEEP_EVERY

    def take(self, rates: Sequence[Rate], costs: Mapping[Unit, int]) -> list[Standing]:
        with self._lock:
            now_ms = self._now_ms()
            buckets = {rate.name: self._bucket(rate) for rate in rates}
            check(rates, buckets, costs, now_ms)
            return [self._add(rate, buckets[rate.name], costs.get(rate.unit, 0), now_ms) for rate in rates]

    def correct(self, rates: Sequence[Rate], costs: Mapping[Unit, int]) -> None:
        with self._lock:
            now_ms = self._now_ms()
            for rate in rates:
                self._add(rate, self._bucket(rate), costs.get(rate.unit, 0), now_ms)

    def enter(self, caps: Sequence[Cap], request_id: str) -> None:
        with self._lock:
            for cap in caps:
                check_cap(cap, self._running[cap.subject_id])
            self._subjects[request_id] = tuple(cap.subject_id for cap in caps)
            self._running.update(self._subjects[request_id])

    def renew(self, request_ids: Sequence[str]) -> None:
        """Nothing to do: the memory ends with the process."""

    def leave(self, request_id: str) -> None:
        with self._lock:
            for subject_id in self._subjects.pop(request_id, ()):
                self._running[subject_id] -= 1
                if not self._running[subject_id]:
                    del self._running[subject_id]

    def _bucket(self, rate: Rate) -> Bucket:
        return self._buckets[rate.name][1] if rate.name in self._buckets else EMPTY

    def _add(self, rate: Rate, bucket: Bucket, amount: int, now_ms: int) -> Standing:
        if rate.name not in self._buckets:
            self._until_sweep -= 1
        if amount:
            bucket = add(rate, bucket, amount, now_ms)
            self._buckets[rate.name] = rate, bucket
        if self._until_sweep <= 0:
            self._until_sweep = SWEEP_EVERY
            self._sweep(now_ms)
        return standing(rate, bucket, now_ms)

    def _sweep(self, now_ms: int) -> None:
        """Forget the empty buckets: one that was never used is the same."""
        empty = [name for name, (rate, bucket) in self._buckets.items() if standing(rate, bucket, now_ms).reset_ms == 0]
        for name in empty:
            del self._buckets[name]
