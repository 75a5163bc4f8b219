"""Prefill and decode speed of the native runner, without engine and HTTP: what one step costs.

    python benchmarks/decode.py CHECKPOINT [--precision int8] [--threads 2] [--isa avx2]
    python benchmarks/decode.py --preset muse-spark-nano        # random weights; speed does not depend on them

Prints a table and one JSON line. Each figure is the best and the median of the repetitions: on a shared machine the
best is the machine's, the median the day's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from musespark.engine.native import NativeRunner, available_isas, build_info, default_precision, usable_cores
from musespark.engine.runner import PAGE_SIZE, Batch
from musespark.model.checkpoint import BUNDLED, Checkpoint, open_checkpoint, save_checkpoint
from musespark.model.config import ModelConfig
from musespark.model.presets import preset
from musespark.model.tensors import expected_tensors

PREFILL_TOKENS = 512
DECODE_TOKENS = 64


def random_checkpoint(config: ModelConfig, folder: Path) -> Checkpoint:
    """A bf16 checkpoint with weights of about the size that training starts from."""
    random = np.random.default_rng(0)
    tensors = {
        name: random.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
        for name, shape in expected_tensors(config).items()
    }
    save_checkpoint(folder, config, tensors, dtype="BF16")
    return open_checkpoint(folder)


class Streams:
    """Some sequences of equal length in a runner's pages."""

    def __init__(self, runner: NativeRunner, count: int) -> None:
        self.runner = runner
        self.count = count
        self.length = 0
        self.random = np.random.default_rng(0)
        self.tables = np.arange(runner.num_full_pages, dtype=np.int32).reshape(count, -1)

    def feed(self, num_tokens: int) -> None:
        """One step: `num_tokens` random tokens for every sequence, and the logits of the last of each."""
        text = self.runner.config.text
        total = self.count * num_tokens
        last = np.arange(1, self.count + 1, dtype=np.int32) * num_tokens - 1
        batch = Batch(
            token_ids=self.random.integers(0, text.vocab_size, total).astype(np.int32),
            positions=np.tile(np.arange(self.length, self.length + num_tokens, dtype=np.int64), self.count),
            query_start=np.arange(self.count + 1, dtype=np.int32) * num_tokens,
            full_block_table=self.tables,
            sliding_block_table=self.tables,
            embed_rows=np.zeros(0, np.int32),
            embeds=np.zeros((0, text.hidden_size), np.float32),
            logit_rows=last,
        )
        self.runner.forward(batch)
        self.length += num_tokens


def timed(action: Callable[[int], None], argument: int, times: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(times):
        action(argument)
    return time.perf_counter() - start


def measure(runner: NativeRunner, streams: int, context: int, repetitions: int) -> dict[str, float]:
    """Tokens per second of all streams together: prefill in steps of PREFILL_TOKENS for each stream, then decode."""
    prefill, decode = [], []
    for _ in range(repetitions):
        together = Streams(runner, streams)
        for _ in range(context // PREFILL_TOKENS):
            prefill.append(streams * PREFILL_TOKENS / timed(together.feed, PREFILL_TOKENS))
        together.feed(1)
        decode.append(streams * DECODE_TOKENS / timed(together.feed, 1, DECODE_TOKENS))
    return {
        "prefill_best": max(prefill),
        "prefill_median": statistics.median(prefill),
        "decode_best": max(decode),
        "decode_median": statistics.median(decode),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=BUNDLED)
    parser.add_argument("--preset", help="a preset with random weights instead of a checkpoint")
    parser.add_argument("--precision", choices=["float32", "bf16", "int8", "int4"], action="append")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--isa", choices=available_isas())
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument(
        "--context",
        type=int,
        default=PREFILL_TOKENS,
        help=f"tokens before decoding starts, in steps of {PREFILL_TOKENS}",
    )
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    if args.context < PREFILL_TOKENS:
        parser.error(f"--context is {args.context}; it must be at least {PREFILL_TOKENS}, one step")

    with tempfile.TemporaryDirectory() as folder:
        if args.preset:
            checkpoint = random_checkpoint(preset(args.preset), Path(folder) / args.preset)
        else:
            checkpoint = open_checkpoint(args.checkpoint)
        report(checkpoint, args)


def report(checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    results = []
    print(f"{'precision':10} {'isa':12} {'threads':>7} {'streams':>7} {'prefill tok/s':>20} {'decode tok/s':>20}")
    for precision in args.precision or [default_precision(checkpoint)]:
        for streams in args.streams:
            pages = streams * ((args.context + DECODE_TOKENS + 1) // PAGE_SIZE + 1)
            runner = NativeRunner(
                checkpoint,
                precision=precision,
                num_full_pages=pages,
                num_sliding_pages=pages,
                num_threads=args.threads,
                isa=args.isa,
            )
            speed = measure(runner, streams, args.context, args.repetitions)
            print(
                f"{precision:10} {runner.isa:12} {args.threads:7} {streams:7} "
                f"{speed['prefill_best']:9,.0f} ({speed['prefill_median']:8,.0f}) "
                f"{speed['decode_best']:9,.0f} ({speed['decode_median']:8,.0f})",
                flush=True,
            )
            results.append({"precision": precision, "isa": runner.isa, "streams": streams, **speed})
            runner.close()
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": args.threads}
    model = args.preset or str(args.checkpoint)
    print(json.dumps({"benchmark": "decode", "model": model, "build": build_info(), **machine, "results": results}))


if __name__ == "__main__":
    main()
