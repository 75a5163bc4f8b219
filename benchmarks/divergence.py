"""How far the coarser precisions of the native runner are from float32, on held-out text.

    python benchmarks/divergence.py [CHECKPOINT] [--reference CHECKPOINT] --text DATA/text/valid

For each precision the mean Kullback-Leibler divergence from the reference (nats a token), the share of tokens whose
most likely next token is the same, and bits per token on the text itself. The reference is CHECKPOINT in float32, or
the checkpoint that CHECKPOINT was quantised from. Prints a table and one JSON line. Needs the training extra.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from musespark.chat.tokenizer import Tokenizer
from musespark.engine.native import NativeRunner, available_isas, build_info, default_precision, usable_cores
from musespark.engine.runner import PAGE_SIZE, Batch, Float32, Int32
from musespark.model.checkpoint import BUNDLED, Checkpoint, open_checkpoint
from musespark.training.shards import read_texts

WINDOW = 512  # tokens of a sample; each starts with the begin-of-text token


def samples(folder: Path, tokenizer: Tokenizer, count: int) -> Iterator[Int32]:
    """`count` pieces of WINDOW tokens, evenly from all files of the folder."""
    paths = sorted(folder.glob("*.jsonl.zst"))
    begin = tokenizer.special("<|begin_of_text|>")
    for index, path in enumerate(paths):
        wanted = count // len(paths) + (index < count % len(paths))
        for text in read_texts(path):
            if wanted == 0:
                break
            ids = tokenizer.encode(text[: 8 * WINDOW])[: WINDOW - 1]
            if len(ids) == WINDOW - 1:
                wanted -= 1
                yield np.array([begin, *ids], np.int32)


def logits_of(runner: NativeRunner, ids: Int32) -> Float32:
    """(WINDOW, V)"""
    pages = np.arange(WINDOW // PAGE_SIZE, dtype=np.int32)[None]
    rows = np.arange(WINDOW, dtype=np.int32)
    embeds = np.zeros((0, runner.config.text.hidden_size), np.float32)
    start = np.array([0, WINDOW], np.int32)
    return runner.forward(Batch(ids, rows.astype(np.int64), start, pages, pages, rows[:0], embeds, rows))


def log_softmax(logits: Float32) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


class Tally:
    """Sums over the tokens of one precision."""

    def __init__(self) -> None:
        self.tokens = 0
        self.divergence = 0.0
        self.same_top = 0
        self.bits = 0.0
        self.largest = 0.0

    def add(self, reference: np.ndarray, got: np.ndarray, ids: Int32) -> None:
        """Log-probabilities (WINDOW, V) of both, and the text."""
        divergence = (np.exp(reference) * (reference - got)).sum(axis=1)
        self.tokens += len(ids)
        self.divergence += float(divergence.sum())
        self.largest = max(self.largest, float(divergence.max()))
        self.same_top += int((reference.argmax(axis=1) == got.argmax(axis=1)).sum())
        self.bits -= float(got[np.arange(len(ids) - 1), ids[1:]].sum()) / np.log(2) * len(ids) / (len(ids) - 1)

    def summary(self) -> dict[str, float]:
        return {
            "mean_kl": self.divergence / self.tokens,
            "largest_kl": self.largest,
            "top1_agreement": self.same_top / self.tokens,
            "bits_per_token": self.bits / self.tokens,
        }


def open_runner(checkpoint: Checkpoint, precision: Any, args: argparse.Namespace) -> NativeRunner:
    pages = WINDOW // PAGE_SIZE
    return NativeRunner(
        checkpoint,
        precision=precision,
        num_full_pages=pages,
        num_sliding_pages=pages,
        num_threads=args.threads,
        isa=args.isa,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=BUNDLED)
    parser.add_argument(
        "--reference", type=Path, help="an unquantised checkpoint to compare with; default the same one"
    )
    parser.add_argument("--text", type=Path, required=True, help="folder of .jsonl.zst files with a `text` in each row")
    parser.add_argument("--samples", type=int, default=60, help=f"pieces of {WINDOW} tokens")
    parser.add_argument("--precision", choices=["float32", "bf16", "int8", "int4"], action="append")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--isa", choices=available_isas())
    args = parser.parse_args()

    checkpoint = open_checkpoint(args.checkpoint)
    reference = open_runner(open_checkpoint(args.reference or args.checkpoint), "float32", args)
    stored = default_precision(checkpoint)
    coarser = ["bf16", "int8", "int4"] if stored == "int4" else ["bf16", "int8"]
    precisions = args.precision or (["float32"] if args.reference else []) + coarser
    runners = {precision: open_runner(checkpoint, precision, args) for precision in precisions}
    tallies = {name: Tally() for name in ("reference", *runners)}
    for ids in samples(args.text, Tokenizer.from_file(args.checkpoint / "tokenizer.json"), args.samples):
        expected = log_softmax(logits_of(reference, ids))
        tallies["reference"].add(expected, expected, ids)
        for precision, runner in runners.items():
            tallies[precision].add(expected, log_softmax(logits_of(runner, ids)), ids)
    if not tallies["reference"].tokens:
        parser.error(f"--text {args.text} holds no .jsonl.zst file with a text of {WINDOW} tokens")

    print(f"{'precision':12} {'mean KL':>10} {'largest KL':>11} {'same top-1':>11} {'bits/token':>11}")
    results = {name: tally.summary() for name, tally in tallies.items()}
    for name, row in results.items():
        print(
            f"{name:12} {row['mean_kl']:10.2e} {row['largest_kl']:11.2e} {row['top1_agreement']:11.2%} "
            f"{row['bits_per_token']:11.4f}"
        )
    facts = {"checkpoint": str(args.checkpoint), "isa": reference.isa, "tokens": tallies["reference"].tokens}
    print(json.dumps({"benchmark": "divergence", **facts, "build": build_info(), "results": results}))


if __name__ == "__main__":
    main()
