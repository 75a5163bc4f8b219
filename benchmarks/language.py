"""How well the bundled model predicts held-out text, and how well it names pictures, against simple peers.

    python benchmarks/language.py --data ../shared/data --run runs/out/nano --recipe runs/nano.py

Bits per byte of UTF-8 on the held-out documents of each domain: the model, an interpolated modified Kneser-Ney trigram
trained on exactly the token stream that the model saw (the run's data plan is replayed), and gzip -9. Naming: one of
eight names by the gain in log-probability over a blank picture, and freely, on held-out and on trained pictures.
Without --run the trigram is left out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from musespark.chat.templates import ChatSettings
from musespark.chat.tokenizer import Tokenizer
from musespark.evals.bits_per_byte import document_ids, score_texts
from musespark.evals.kneser_ney import KneserNeyTrigram
from musespark.evals.naming import NamingScore, Picture, count_named_freely, name_pictures
from musespark.model.checkpoint import BUNDLED
from musespark.model.network import Network, load_network
from musespark.training.pictures import name_answer
from musespark.training.recipe import load_recipe
from musespark.training.replay import documents_of, load_progress, seen_rows
from musespark.training.shards import read_images, read_texts

DOMAINS = ("stories", "textbooks", "qa", "docs", "books", "python")
FAMILIES = ("emoji", "icons")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--recipe", type=Path, default=Path("runs/nano.py"))
    parser.add_argument("--run", type=Path, help="the folder of the training run, for the trigram")
    parser.add_argument("--bytes", type=int, default=100_000, help="of held-out text per domain, at the least")
    parser.add_argument("--pictures", type=int, default=200, help="of each set, at the most")
    arguments = parser.parse_args()

    started = time.monotonic()
    tokenizer = Tokenizer.from_file(arguments.checkpoint / "tokenizer.json")
    network = load_network(arguments.checkpoint)
    trigram, num_seen = build_trigram(arguments, tokenizer) if arguments.run else (None, 0)
    text = {domain: score_domain(domain, arguments, network, tokenizer, trigram) for domain in DOMAINS}
    naming = {
        f"{split} {family}": score_pictures(family, split, arguments, network, tokenizer)
        for family in FAMILIES
        for split in ("held-out", "trained")
    }
    print_tables(text, naming, num_seen)
    print(
        json.dumps(
            {
                "checkpoint": arguments.checkpoint.name,
                "tokens_seen_by_both": num_seen,
                "bits_per_byte": text,
                "naming": {
                    name: {
                        "accuracy": s.accuracy,
                        "standard_error": s.standard_error,
                        "chance": s.chance,
                        "n": s.num_pictures,
                        "named_freely": freely,
                    }
                    for name, (s, freely) in naming.items()
                },
                "torch": torch.__version__,
                "machine": platform.processor() or platform.machine(),
                "seconds": round(time.monotonic() - started),
            }
        )
    )


def build_trigram(arguments: argparse.Namespace, tokenizer: Tokenizer) -> tuple[KneserNeyTrigram, int]:
    """The trigram of the run's own token stream, and how many tokens that was."""
    recipe = load_recipe(arguments.recipe)
    num_seen = 0

    def documents() -> Iterator[np.ndarray]:
        nonlocal num_seen
        for row in seen_rows(recipe, load_progress(arguments.run), data=arguments.data, out=arguments.run):
            for document in documents_of(row):
                num_seen += len(document)
                yield document

    begin = tokenizer.special("<|begin_of_text|>")
    return KneserNeyTrigram(documents(), vocab_size=tokenizer.vocab_size, begin=begin), num_seen


def score_domain(
    domain: str,
    arguments: argparse.Namespace,
    network: Network,
    tokenizer: Tokenizer,
    trigram: KneserNeyTrigram | None,
) -> dict[str, float]:
    """Bits per byte of the model, the trigram and gzip on the first held-out documents of a domain."""
    texts: list[str] = []
    size = 0
    for whole in read_texts(arguments.data / "text" / "valid" / f"{domain}.jsonl.zst"):
        piece = whole[: max(2000, arguments.bytes // 5)]  # of books the beginning: five books would be one otherwise
        texts.append(piece)
        size += len(piece.encode())
        if size >= arguments.bytes:
            break
    score = score_texts(network, texts, tokenizer)
    result = {"model": score.bits_per_byte, "gzip": 8 * len(gzip.compress("\n".join(texts).encode(), 9)) / size}
    if trigram is not None:
        nats = -sum(float(trigram.log_probs(document_ids(text, tokenizer)).sum()) for text in texts)
        result["trigram"] = nats / np.log(2) / size
    return {name: round(float(value), 4) for name, value in result.items()} | {"bytes": size}


def score_pictures(
    family: str, split: str, arguments: argparse.Namespace, network: Network, tokenizer: Tokenizer
) -> tuple[NamingScore, int]:
    """The choice of eight, and how many pictures are named exactly with nothing to choose from."""
    path = arguments.data / "images" / (f"valid-{family}.tar" if split == "held-out" else f"{family}-000.tar")
    pictures = [Picture(data, name_answer(family, row)) for _, data, row in read_images(path)]
    chosen = np.random.default_rng(0).permutation(len(pictures))[: arguments.pictures]
    settings = ChatSettings.from_file(arguments.checkpoint)
    pictures = [pictures[i] for i in chosen]
    score = name_pictures(network, pictures, tokenizer, settings)
    return score, count_named_freely(network, pictures, tokenizer, settings)


def print_tables(text: dict[str, dict[str, float]], naming: dict[str, tuple[NamingScore, int]], num_seen: int) -> None:
    if num_seen:
        print(f"model and trigram saw the same {num_seen:,} tokens")
    print(f"{'bits per byte':<14}{'model':>8}{'trigram':>9}{'gzip -9':>9}{'bytes':>10}")
    for domain, scores in text.items():
        trigram = f"{scores['trigram']:9.3f}" if "trigram" in scores else f"{'-':>9}"
        print(f"{domain:<14}{scores['model']:8.3f}{trigram}{scores['gzip']:9.3f}{scores['bytes']:10,.0f}")
    print(f"{'naming, of 8':<18}{'right':>7}{'± s.e.':>8}{'chance':>8}{'pictures':>10}{'named freely':>14}")
    for name, (score, freely) in naming.items():
        print(
            f"{name:<18}{score.accuracy:7.1%}{score.standard_error:8.1%}{score.chance:8.1%}"
            f"{score.num_pictures:10,}{freely:14,}"
        )


if __name__ == "__main__":
    main()
