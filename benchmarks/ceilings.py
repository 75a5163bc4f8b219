"""What this machine can do at best, for the roofline: memory reads by numpy, products of int8 and bf16 by torch.

    python benchmarks/ceilings.py [--threads 2]     # one JSON line; without torch, only the reads

Reads: every thread looks for the largest number of its own 256 MiB. Products: torch's (oneDNN's) 1024 x 4096 by
4096 x 4096, best of ten; they come within 5 % of what the registers can do where the processor has VNNI.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from musespark.engine.native import usable_cores
from musespark.engine.speed import read_bandwidth

ROWS, WIDTH = 1024, 4096


def best_rate(call: Callable[[], Any]) -> float:
    """Operations a second of a (ROWS, WIDTH) by (WIDTH, WIDTH) product."""
    call()
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return 2 * ROWS * WIDTH * WIDTH / min(times)


def ceilings(threads: int) -> dict[str, float | None]:
    found: dict[str, float | None] = {"read_bytes_per_s": max(read_bandwidth(threads, 0.5) for _ in range(3))}
    try:
        import torch
    except ImportError:
        return found | {"int8_ops": None, "bf16_ops": None}
    torch.set_num_threads(threads)
    a8, b8 = (torch.ones(rows, WIDTH, dtype=torch.int8) for rows in (ROWS, WIDTH))
    a16, b16 = (torch.ones(rows, WIDTH, dtype=torch.bfloat16) for rows in (ROWS, WIDTH))
    found["int8_ops"] = best_rate(lambda: torch._int_mm(a8, b8.T))
    found["bf16_ops"] = best_rate(lambda: torch.nn.functional.linear(a16, b16))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=usable_cores())
    print(json.dumps(ceilings(parser.parse_args().threads)))
