"""How much of a step of the engine is Python, and how much is the native core.

    .venv/bin/python benchmarks/python_share.py [FOLDER] [--streams 1 16] [--steps 300] [--profile]

Decodes that many streams at once, greedy and sampled (temperature 1, top_p 0.9), with the text output that the engine
has, and takes the time of `Engine.step` and, within it, of `Runner.forward`: the rest is Python. Prints a table and, as
the last line, one JSON document; --profile adds what the functions of a step took.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import time
from pathlib import Path

from musespark.chat.formats import open_tokenizer
from musespark.engine.engine import Engine
from musespark.engine.native import NativeRunner
from musespark.engine.output import TextOutput
from musespark.engine.request import Request, SamplingParams
from musespark.engine.runner import Batch, Float32
from musespark.model.checkpoint import BUNDLED, open_checkpoint

SAMPLING = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 1.0, "top_p": 0.9}}
PROMPT_TOKENS = 64


class TimedRunner(NativeRunner):
    """Adds up the time that the native core takes."""

    forward_s = 0.0

    def forward(self, batch: Batch) -> Float32:
        started_s = time.perf_counter()
        logits = super().forward(batch)
        self.forward_s += time.perf_counter() - started_s
        return logits


def measure(
    folder: Path, how: str, streams: int, num_steps: int, profile: cProfile.Profile | None
) -> tuple[float, float]:
    """Medians over the steps: seconds of a step, and its share that is not the native core's."""
    checkpoint, tokenizer = open_checkpoint(folder), open_tokenizer(folder)
    pages = streams * ((PROMPT_TOKENS + num_steps) // 64 + 4)
    runner = TimedRunner(checkpoint, num_full_pages=pages, num_sliding_pages=pages)
    engine = Engine(runner, max_running=streams, suppressed_token_ids=tokenizer.special_ids)
    for number in range(streams):
        prompt = tuple((number * 7919 + 31 * at) % 4000 + 300 for at in range(PROMPT_TOKENS))
        sampling = SamplingParams(max_tokens=num_steps, ignore_eos=True, seed=number, **SAMPLING[how])
        engine.submit(
            Request(id=str(number), prompt=prompt, sampling=sampling, make_output=lambda _: TextOutput(tokenizer))
        )
    steps, shares = [], []
    while engine.stats().running < streams or engine.stats().num_generated_tokens_total < 8 * streams:
        engine.step()
    while engine.stats().running == streams:
        runner.forward_s = 0.0
        started_s = time.perf_counter()
        if profile is not None:
            profile.enable()
        engine.step()
        if profile is not None:
            profile.disable()
        steps.append(time.perf_counter() - started_s)
        shares.append(1 - runner.forward_s / steps[-1])
    engine.close()
    return statistics.median(steps), statistics.median(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=BUNDLED, help="a checkpoint; the model in the box")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for how in SAMPLING:
        for streams in arguments.streams:
            profile = cProfile.Profile() if arguments.profile else None
            step_s, share = measure(arguments.folder.resolve(), how, streams, arguments.steps, profile)
            rows.append({"sampling": how, "streams": streams, "step_us": step_s * 1e6, "python_share": share})
            print(
                f"{how:<8} {streams:>3} streams  step {step_s * 1e6:>8.0f} us  "
                f"Python {share * 1e6 * step_s:>6.0f} us {share:>6.1%}"
            )
            if profile is not None:
                pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(22)
    print(json.dumps({"benchmark": "python_share", "model": arguments.folder.name, "rows": rows}))


if __name__ == "__main__":
    main()
