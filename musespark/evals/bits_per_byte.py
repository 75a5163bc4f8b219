"""How well a network predicts text, in bits per byte of UTF-8: independent of the tokenizer, lower is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from musespark.chat.tokenizer import Tokenizer
from musespark.model.network import Network


@dataclass(frozen=True, slots=True)
class Score:
    nats: float
    num_bytes: int
    num_tokens: int

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes


def document_ids(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """A document as training saw documents: begin-of-text, tokens, end-of-text."""
    begin, end = tokenizer.special("<|begin_of_text|>"), tokenizer.special("<|end_of_text|>")
    return np.array([begin, *tokenizer.encode(text), end])


@torch.no_grad()
def network_nats(network: Network, token_ids: np.ndarray, *, window: int = 512, stride: int = 384) -> float:
    """Summed -log P of every token after the first.

    Long documents are read in windows that overlap: each token is scored once, with at least window - stride tokens
    before it where the document has them.
    """
    tokens = torch.from_numpy(token_ids.astype(np.int64))
    total, scored = 0.0, 1
    for start in range(0, len(tokens), stride):
        part = tokens[start : start + window + 1]
        first = scored - start  # place in the window of the first token that is not scored yet
        if first >= len(part):
            break
        hidden, _ = network.hidden_states(part[None, :-1])
        logits = network.logits(hidden[0, first - 1 :])
        total += float(F.cross_entropy(logits, part[first:], reduction="sum"))
        scored = start + len(part)
    return total


def score_texts(network: Network, texts: Sequence[str], tokenizer: Tokenizer) -> Score:
    documents = [document_ids(text, tokenizer) for text in texts]
    return Score(
        nats=sum(network_nats(network, document) for document in documents),
        num_bytes=sum(len(text.encode()) for text in texts),
        num_tokens=sum(len(document) - 1 for document in documents),
    )
