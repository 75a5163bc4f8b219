"""Batches for runners, and what the torch network says to them; without the native core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from musespark.engine.runner import NO_PAGE, PAGE_SIZE, Batch
from musespark.model.network import Network
from tests.model.network.builders import IMAGE_TOKEN, VOCAB_SIZE


class Stream:
    """Tokens of one sequence and its pages in both groups."""

    def __init__(
        self, ids: Sequence[int], pages: Sequence[int], sliding: Sequence[int] | None = None, start: int = 0
    ) -> None:
        self.ids = list(ids)
        self.full = list(pages)
        self.sliding = self.full if sliding is None else list(sliding)
        self.start = start

    def part(self, begin: int, end: int) -> Stream:
        """Tokens [begin, end) as a later chunk of the same sequence."""
        return Stream(self.ids[begin:end], self.full, self.sliding, self.start + begin)


def batch_of(*sequences: Stream, features: np.ndarray | None = None, logit_rows: Sequence[int] | None = None) -> Batch:
    """One batch with the logits of every row. `features` fill the rows of the image token."""
    token_ids = np.array([token for sequence in sequences for token in sequence.ids], np.int32)
    positions = [np.arange(s.start, s.start + len(s.ids), dtype=np.int64) for s in sequences]
    rows = np.arange(len(token_ids)) if logit_rows is None else np.array(logit_rows)
    return Batch(
        token_ids=token_ids,
        positions=np.concatenate(positions),
        query_start=np.cumsum([0, *(len(sequence.ids) for sequence in sequences)]).astype(np.int32),
        full_block_table=_table([sequence.full for sequence in sequences]),
        sliding_block_table=_table([sequence.sliding for sequence in sequences]),
        embed_rows=np.flatnonzero(token_ids == IMAGE_TOKEN).astype(np.int32) if features is not None else _no_rows(),
        embeds=np.zeros((0, 0), np.float32) if features is None else features,
        logit_rows=rows.astype(np.int32),
    )


def random_ids(count: int, seed: int = 0) -> list[int]:
    """Text tokens: no image token among them."""
    return np.random.default_rng(seed).integers(12, VOCAB_SIZE, count).tolist()


def pages_for(count: int, seed: int = 0, num_pages: int = 16) -> list[int]:
    """Distinct page ids in random order, enough for `count` tokens."""
    return np.random.default_rng(seed).permutation(num_pages)[: -(-count // PAGE_SIZE)].tolist()


@torch.no_grad()
def reference_logits(network: Network, ids: Sequence[int], images: Sequence[Any] = ()) -> np.ndarray:
    """(T, V) of the torch network, the whole sequence at once."""
    return network(torch.tensor([list(ids)]), images=images)[0].numpy()


def _table(pages: Sequence[Sequence[int]]) -> np.ndarray:
    width = max(len(row) for row in pages)
    return np.array([[*row, *[NO_PAGE] * (width - len(row))] for row in pages], np.int32)


def _no_rows() -> np.ndarray:
    return np.zeros(0, np.int32)
