"""What guessing tokens brings one stream: the engine with and without, on text that copies and on text that doesn't.

    python benchmarks/speculation.py [CHECKPOINT] [--draft-tokens 4 8 16] [--threads 2] [--precision int8]

Three texts: `copy`, a passage that stands in the prompt twice and begins a third time, greedy; `free`, the start of a
story, at temperature 0.8; `right`, where an oracle guesses every token, which bounds what any drafter can bring. The
texts with and without must be equal to the token, or it ends with an error. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from musespark.chat.formats import open_tokenizer
from musespark.engine.engine import Engine
from musespark.engine.native import NativeRunner, default_precision, usable_cores
from musespark.engine.request import FinishReason, Request, SampledToken, SamplingParams
from musespark.engine.speculation import Drafter, NgramDrafter
from musespark.model.checkpoint import BUNDLED, open_checkpoint

PASSAGE = (
    "The lighthouse keeper wrote down the weather every evening: wind from the north-west, four ships seen, lamp oil "
    "for nine days. On Tuesday the boat brought flour, two letters and a grey cat, which he called Captain because it "
    "walked up and down the gallery as if it were in command. "
)
STORY = "Once upon a time there was a girl who lived near the sea with her grandmother. One morning she found"


class Tokens:
    """An output that keeps the tokens, and the time of the first and the last."""

    reasoning_tokens = 0

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.times: list[float] = []

    def push(self, token: SampledToken) -> FinishReason | None:
        self.ids.append(token.id)
        self.times.append(time.perf_counter())
        return None

    def finish(self, stop_token: int | None) -> None:
        pass

    def take(self) -> list[object]:
        return []


class Oracle:
    """Knows how it goes on."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.num_read = 0

    def propose(self, new: Sequence[int], most: int) -> Sequence[int]:
        self.num_read += len(new)
        return self.tokens[self.num_read : self.num_read + most]


def generate(engine: Engine, prompt: Sequence[int], temperature: float, num_tokens: int) -> tuple[list[int], float]:
    """The tokens, and how many a second came after the first."""
    output = Tokens()
    params = SamplingParams(max_tokens=num_tokens, temperature=temperature, seed=1, ignore_eos=True)
    engine.submit(
        Request(id="one", prompt=tuple(prompt), sampling=params, make_output=lambda index: output, salt=b"bench")
    )
    while engine.has_work:
        engine.step()
    return output.ids, (len(output.ids) - 1) / (output.times[-1] - output.times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUNDLED)
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--precision", choices=["float32", "bf16", "int8", "int4"])
    parser.add_argument("--tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    tokenizer = open_tokenizer(args.checkpoint)
    precision = args.precision or default_precision(checkpoint)
    start = tokenizer.special("<|begin_of_text|>")
    texts: dict[str, tuple[list[int], float]] = {
        "copy": ([start, *tokenizer.encode(PASSAGE + PASSAGE + PASSAGE[:30])], 0.0),
        "free": ([start, *tokenizer.encode(STORY)], 0.8),
        "right": ([start, *tokenizer.encode(STORY)], 0.0),
    }
    runner = NativeRunner(
        checkpoint, precision=precision, num_full_pages=64, num_sliding_pages=64, num_threads=args.threads
    )
    results: list[dict[str, Any]] = []
    for name, (prompt, temperature) in texts.items():
        plain = Engine(runner)
        expected, _ = generate(plain, prompt, temperature, args.tokens)
        make: Callable[[], Drafter] = NgramDrafter
        if name == "right":
            make = partial(Oracle, [*prompt, *expected])
        engines = {0: plain} | {n: Engine(runner, max_draft_tokens=n, make_drafter=make) for n in args.draft_tokens}
        speeds: dict[int, list[float]] = {n: [] for n in engines}
        for _ in range(args.repeats):  # interleaved, so that all see the same weather
            for n, engine in engines.items():
                ids, speed = generate(engine, prompt, temperature, args.tokens)
                if ids != expected:
                    sys.exit(f"{name}: with {n} draft tokens another text came out")
                speeds[n].append(speed)
        for n, engine in engines.items():
            stats = engine.stats()
            drafted, accepted = stats.num_drafted_tokens_total, stats.num_accepted_tokens_total
            speed = statistics.median(speeds[n])
            results.append(
                {
                    "text": name,
                    "draft_tokens": n,
                    "tokens_per_s": round(speed, 1),
                    "ratio": round(speed / statistics.median(speeds[0]), 2),
                    "guessed": drafted,
                    "right": round(accepted / drafted, 2) if drafted else None,
                    "tokens_per_step": round(stats.num_generated_tokens_total / max(1, stats.num_steps_total), 2),
                }
            )
    print("| text | draft tokens | tokens/s | ratio | guesses right | tokens a step |\n|---|---|---|---|---|---|")
    for r in results:
        share = "" if r["right"] is None else f"{r['right']:.0%}"
        print(
            f"| {r['text']} | {r['draft_tokens']} | {r['tokens_per_s']:,.0f} | {r['ratio']:.2f} | {share} "
            f"| {r['tokens_per_step']} |"
        )
    facts = {"checkpoint": args.checkpoint.name, "precision": precision, "threads": args.threads}
    print(json.dumps(facts | {"results": results}))


if __name__ == "__main__":
    main()
