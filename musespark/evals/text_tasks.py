"""Bits per byte on held-out text, one task per domain. An outcome is a document: minus its bits per byte.

Documents weigh as much as they are long, so the task's mean is that of all text together.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from typing import Literal

from musespark.chat.prompt import Prompt
from musespark.chat.tokenizer import Tokenizer
from musespark.evals.benchmarks import read_documents
from musespark.evals.model_under_test import Scorer
from musespark.evals.task import Baselines, Outcome, Source

DOMAINS = ("stories", "textbooks", "qa", "docs", "books", "python")
PIECE = 20_000  # characters of a document, from its beginning: five books would be one otherwise
WINDOW, STRIDE = 512, 384  # tokens; each is scored once, with at least WINDOW - STRIDE before it


class HeldOutText:
    needs: Literal["scorer"] = "scorer"
    unit = "-bits/byte"

    def __init__(self, domain: str, source: Source) -> None:
        self.name = f"text_{domain}"
        path = source.data / "text" / "valid" / f"{domain}.jsonl.zst"
        self._texts = [text[:PIECE] for text in read_documents(path)][: source.limit]

    def baselines(self) -> Baselines:
        """What gzip -9 makes of each document."""
        packed = sum(len(gzip.compress(text.encode(), 9)) for text in self._texts)
        return Baselines(chance=-8 * packed / sum(len(text.encode()) for text in self._texts))

    def run(self, model: Scorer) -> Iterator[Outcome]:
        for number, text in enumerate(self._texts):
            size = len(text.encode())
            nats = document_nats(model, text)
            bits = nats / math.log(2) / size
            yield Outcome(f"{self.name}-{number}", -bits, weight=size, details={"nats": nats, "bytes": size})


def document_nats(model: Scorer, text: str) -> float:
    """-ln P of a document's tokens and its end, in windows that overlap."""
    tokens = document_tokens(text, model.tokenizer)
    total, scored = 0.0, 1
    for start in range(0, len(tokens), STRIDE):
        stop = min(start + WINDOW + 1, len(tokens))
        if scored < stop:
            total -= model.log_probs(Prompt(tokens[start:scored]), [tokens[scored:stop]])[0]
            scored = stop
    return total


def document_tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    """A document as training saw documents: begin-of-text, tokens, end-of-text."""
    return [tokenizer.special("<|begin_of_text|>"), *tokenizer.encode(text), tokenizer.special("<|end_of_text|>")]
