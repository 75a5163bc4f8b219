"""How well the bundled model predicts held-out text, and how well it names pictures, against simple peers.

    python benchmarks/language.py --data ../shared/data --run runs/out/nano --recipe runs/nano.py

Bits per byte of UTF-8 on the held-out documents of each domain: the model, an interpolated modified Kneser-Ney trigram
trained on exactly the token stream that the model saw (the run's data plan is replayed), and gzip -9. Naming: one of
eight names by the gain in log-probability over a blank picture, on held-out and on trained pictures.
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

from musespark.api.settings import Settings
from musespark.chat.tokenizer import Tokenizer
from musespark.cli.evaluate import open_scorer
from musespark.evals.kneser_ney import KneserNeyTrigram
from musespark.evals.model_under_test import Scorer
from musespark.evals.naming import PictureNames
from musespark.evals.statistics import estimate
from musespark.evals.task import Source
from musespark.evals.text_tasks import document_nats, document_tokens
from musespark.model.checkpoint import BUNDLED
from musespark.training.recipe import load_recipe
from musespark.training.replay import documents_of, load_progress, seen_rows
from musespark.training.shards import read_texts

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
    trigram, num_seen = build_trigram(arguments, tokenizer) if arguments.run else (None, 0)
    with open_scorer(Settings(checkpoint=arguments.checkpoint)) as scorer:
        text = {domain: score_domain(domain, arguments, scorer, trigram) for domain in DOMAINS}
        naming = {
            f"{name} {family}": score_pictures(family, split, arguments, scorer)
            for family in FAMILIES
            for name, split in (("held-out", "valid"), ("trained", "train"))
        }
    print_tables(text, naming, num_seen)
    result = {
        "checkpoint": arguments.checkpoint.name,
        "tokens_seen_by_both": num_seen,
        "bits_per_byte": text,
        "naming": naming,
        "machine": platform.processor() or platform.machine(),
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(result))


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
    scorer: Scorer,
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
    nats = {"model": sum(document_nats(scorer, text) for text in texts)}
    if trigram is not None:
        documents = (np.array(document_tokens(text, scorer.tokenizer)) for text in texts)
        nats["trigram"] = -sum(float(trigram.log_probs(document).sum()) for document in documents)
    bits = {name: value / np.log(2) / size for name, value in nats.items()}
    bits["gzip"] = 8 * len(gzip.compress("\n".join(texts).encode(), 9)) / size
    return {name: round(float(value), 4) for name, value in bits.items()} | {"bytes": size}


def score_pictures(family: str, split: str, arguments: argparse.Namespace, scorer: Scorer) -> dict[str, float]:
    """The choice of eight names."""
    task = PictureNames(family, Source(arguments.data, arguments.pictures), split=split)
    found = estimate(list(task.run(scorer)))
    return {
        "accuracy": found.mean,
        "standard_error": found.standard_error,
        "chance": task.baselines().chance or 0.0,
        "n": found.num_items,
    }


def print_tables(text: dict[str, dict[str, float]], naming: dict[str, dict[str, float]], num_seen: int) -> None:
    if num_seen:
        print(f"model and trigram saw the same {num_seen:,} tokens")
    print(f"{'bits per byte':<14}{'model':>8}{'trigram':>9}{'gzip -9':>9}{'bytes':>10}")
    for domain, scores in text.items():
        trigram = f"{scores['trigram']:9.3f}" if "trigram" in scores else f"{'-':>9}"
        print(f"{domain:<14}{scores['model']:8.3f}{trigram}{scores['gzip']:9.3f}{scores['bytes']:10,.0f}")
    print(f"{'naming, of 8':<18}{'right':>7}{'± s.e.':>8}{'chance':>8}{'pictures':>10}")
    for name, row in naming.items():
        numbers = f"{row['accuracy']:7.1%}{row['standard_error']:8.1%}{row['chance']:8.1%}{row['n']:10,}"
        print(f"{name:<18}{numbers}")


if __name__ == "__main__":
    main()
