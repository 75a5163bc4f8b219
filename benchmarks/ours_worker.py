"""Our engine in a process of its own, for measuring by turns: one JSON object a line in, one out.

    {"do": "load", "model": FOLDER, "threads": 2, "context": 33000, "streams": 1}   -> {"start_s": ..., ...}
    {"do": "prefill", "tokens": 512}                                      -> {"seconds": ...}
    {"do": "decode", "depth": 4096, "streams": 1, "count": 32}            -> {"seconds": ...}
    {"do": "ceilings", "threads": 2}                                      -> {"read_bytes_per_s": ...}

What is timed is musespark/engine/speed.py: whole engine steps.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from musespark.engine.native import build_info
from musespark.engine.speed import EngineSpeed, bytes_of_a_token, read_bandwidth
from musespark.model.checkpoint import Checkpoint, open_checkpoint


class Worker:
    def __init__(self) -> None:
        self.engine: EngineSpeed | None = None
        self.checkpoint: Checkpoint | None = None

    def load(self, model: str, threads: int, context: int, streams: int) -> dict[str, Any]:
        begun = time.perf_counter()
        self.checkpoint = open_checkpoint(Path(model), check_while_reading=True)
        self.engine = EngineSpeed(self.checkpoint, context=context, streams=streams, threads=threads)
        runner = self.engine.runner
        return {
            "start_s": time.perf_counter() - begun,
            "version": f"musespark {metadata.version('musespark')}",
            "system": f"{runner.precision}, {runner.isa}, {build_info().get('compiler', '')}",
            "weight_bytes": runner.weight_bytes,
        }

    def prefill(self, tokens: int) -> dict[str, Any]:
        assert self.engine is not None
        return {"seconds": self.engine.prefill(tokens)}

    def decode(self, depth: int, streams: int, count: int) -> dict[str, Any]:
        assert self.engine is not None
        assert self.checkpoint is not None
        precision = self.engine.runner.precision
        num_bytes = bytes_of_a_token(self.checkpoint, precision, depth)
        return {"seconds": self.engine.decode(depth, streams, count), "bytes_of_a_token": num_bytes}

    def ceilings(self, threads: int) -> dict[str, Any]:
        return {"read_bytes_per_s": read_bandwidth(threads)}


def main() -> None:
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        action = getattr(worker, request.pop("do"))
        print(json.dumps(action(**request)), flush=True)


if __name__ == "__main__":
    main()
