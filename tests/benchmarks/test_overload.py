"""Twice as many requests as the server can carry: those who are let in wait little, the rest hear so at once."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from benchmarks.overload import measure, serving


def test_twice_the_capacity_is_refused_in_order_and_nobody_hangs() -> None:
    with serving(Path(sys.prefix), running=8, waiting=4) as server:
        figures = asyncio.run(measure(server, running=8, seconds=2.5))
    assert figures["num_other"] == figures["num_without_an_end"] == figures["num_refused_without_hint"] == 0
    assert figures["num_refused"] > 5
    assert figures["num_admitted"] > 10
    # The benchmark, on a quiet machine and for longer, gives 1.6 of the 2 that are promised; tests share theirs.
    assert figures["ratio"] < 3
    assert figures["p99_refusal_s"] < figures["p99_s_at_capacity"]
