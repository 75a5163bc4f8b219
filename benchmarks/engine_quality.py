"""Two rows of the engine benchmark: how far each format is from float32, and transformers as the slow peer."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from comparison import Result, by_turns
from divergence import Tally, log_softmax
from models import make_tokenizer, model_config, path_of
from side import OURS, Side, llama_cpp

from musespark.engine.native import NativeRunner
from musespark.engine.runner import PAGE_SIZE, Batch
from musespark.model.checkpoint import open_checkpoint

HERE = Path(__file__).parent
TEXT = HERE.parent / "docs" / "api.md"
WINDOW = 512
PAIRS = (("int8", "q8_0"), ("int4", "q4_0"), ("int4", "q4_k_m"))


def divergence(name: str, args: argparse.Namespace, reads: float) -> list[Result]:
    """Mean Kullback-Leibler divergence from our float32 of the bf16 weights, and the same top-1, on WINDOW tokens.

    Both as they are served, keys and values in 16 bits. llama.cpp's q8_0 and q4_0 hold our integers.
    """
    begin = model_config(name).text.bos_token_id
    encoded = make_tokenizer(model_config(name).model_type).encode(TEXT.read_text())
    ids = np.array([begin, *encoded[: WINDOW - 1]], np.int32)
    reference = log_softmax(our_logits(path_of(args.folder, name, "bf16"), "float32", ids, args.threads))

    def tally(logits: np.ndarray) -> dict[str, float]:
        found = Tally()
        found.add(reference, log_softmax(logits), ids)
        return found.summary()

    results = []
    for ours, theirs in PAIRS:
        mine = tally(our_logits(path_of(args.folder, name, ours), ours, ids, args.threads))
        other = tally(their_logits(path_of(args.folder, name, theirs), ids, args.threads))
        top = {"ours": mine["top1_agreement"], "theirs": other["top1_agreement"]}
        kl = [(found["mean_kl"],) for found in (mine, other)]
        results.append(
            Result("KL from float32", name, ours, f"llama.cpp {theirs}", "nats", *kl, 1.0, "lower", {"same top-1": top})
        )
    return results


def our_logits(folder: Path, precision: Any, ids: np.ndarray, threads: int) -> np.ndarray:
    """(WINDOW, V) float32"""
    pages = math.ceil(len(ids) / PAGE_SIZE)
    runner = NativeRunner(
        open_checkpoint(folder), precision=precision, num_full_pages=pages, num_sliding_pages=pages, num_threads=threads
    )
    try:
        table = np.arange(pages, dtype=np.int32)[None]
        rows = np.arange(len(ids), dtype=np.int32)
        embeds = np.zeros((0, runner.config.text.hidden_size), np.float32)
        start = np.array([0, len(ids)], np.int32)
        return runner.forward(Batch(ids, rows.astype(np.int64), start, table, table, rows[:0], embeds, rows))
    finally:
        runner.close()


def their_logits(gguf: Path, ids: np.ndarray, threads: int) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npy"
        request = {"do": "logits", "model": str(gguf), "tokens": ids.tolist(), "out": str(out), "threads": threads}
        request["exact"] = False
        subprocess.run(llama_cpp(), input=json.dumps(request), check=True, capture_output=True, text=True)
        logits: np.ndarray = np.load(out)
        return logits


def transformers(name: str, args: argparse.Namespace, reads: float) -> list[Result]:
    """Ours in bf16 weights and in int8 beside it; wanted: ten times."""
    load = {"threads": args.threads, "context": 1400, "streams": 1}
    peer = Side([sys.executable, HERE / "transformers_worker.py"], model=path_of(args.folder, name, "bf16"), **load)
    results = []
    with peer:
        for form in ("bf16", "int8"):
            with Side(OURS, model=path_of(args.folder, name, form), **load) as ours:
                for row, request, tokens in (
                    ("prefill 512", {"do": "prefill", "tokens": 512}, 512),
                    ("decode", {"do": "decode", "depth": 128, "streams": 1, "count": 8}, 8),
                ):

                    def rate(side: Side, request: dict[str, Any] = request, tokens: int = tokens) -> float:
                        return tokens / float(side.ask(**request)["seconds"])

                    figures = by_turns(args.runs, lambda: rate(ours), lambda: rate(peer))
                    facts = {"peer": peer.facts["version"]}
                    results.append(
                        Result(row, name, form, "transformers bf16 sdpa", "tokens/s", *figures, 10.0, facts=facts)
                    )
    return results
