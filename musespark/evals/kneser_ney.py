"""An interpolated, modified Kneser-Ney trigram over token ids: the yardstick a language model must beat.

Chen and Goodman, "An empirical study of smoothing techniques" (1998), section 3: three discounts per order, taken from
the counts of counts; the trigram counts are the data's, the orders below count in how many contexts an n-gram appears
("continuation counts"), and the last step down is to the uniform distribution. N-grams are integers (a V + b) V + c, so
that counting is sorting.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

BLOCK = 1 << 21  # n-grams counted at once before they are merged with the rest


@dataclass(frozen=True, slots=True)
class _Order:
    """One order: its n-grams with their counts, and per context (the n-gram without its last token) the sums."""

    keys: np.ndarray  # (n,) int64, sorted
    counts: np.ndarray  # (n,) int64
    discounts: np.ndarray  # (3,) for counts 1, 2 and more
    contexts: np.ndarray  # (m,) int64, sorted
    totals: np.ndarray  # (m,) sum of the counts after each context
    reserved: np.ndarray  # (m,) what the discounts take from each context

    @classmethod
    def build(cls, keys: np.ndarray, counts: np.ndarray, vocab_size: int) -> _Order:
        discounts = modified_discounts(counts)
        contexts, starts = np.unique(keys // vocab_size, return_index=True)
        totals = np.add.reduceat(counts, starts) if len(starts) else np.empty(0, np.int64)
        taken = discounts[np.minimum(counts, 3) - 1]
        reserved = np.add.reduceat(taken, starts) if len(starts) else np.empty(0)
        return cls(keys, counts, discounts, contexts, totals, reserved)

    def mix(self, context: np.ndarray, keys: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """P(token | context) given the same from the order below; a context never seen passes `lower` on."""
        place, known = _find(self.contexts, context)
        count_place, seen = _find(self.keys, keys)
        counts = np.where(seen, self.counts[count_place], 0)
        discounted = np.where(counts > 0, counts - self.discounts[np.clip(counts, 1, 3) - 1], 0.0)
        total = np.where(known, self.totals[place], 1)
        weight = np.where(known, self.reserved[place] / total, 1.0)
        return np.where(known, discounted / total, 0.0) + weight * lower


def modified_discounts(counts: np.ndarray) -> np.ndarray:
    """D1, D2, D3+ = i - (i + 1) Y n(i+1) / n(i) with Y = n1 / (n1 + 2 n2), each kept between 0 and i.

    A corpus too small to have n-grams of every count from 1 to 4 has no such estimate: then 0.5 for all.
    """
    n = np.array([np.count_nonzero(counts == i) for i in range(1, 5)], float)
    if not n.all():
        return np.full(3, 0.5)
    y = n[0] / (n[0] + 2 * n[1])
    i = np.arange(1, 4)
    return np.clip(i - (i + 1) * y * n[1:] / n[:3], 0.0, i)


class KneserNeyTrigram:
    """P(c | a, b). A whole document starts with `begin`, which is never predicted; one cut off in front does not."""

    def __init__(self, documents: Iterable[np.ndarray], *, vocab_size: int, begin: int) -> None:
        self.vocab_size = vocab_size
        trigrams, opening = _count(documents, vocab_size, begin)
        trigram_keys, trigram_counts = trigrams
        # In how many contexts an n-gram appears; nothing comes before an opening one, so its own count stands in.
        bigrams = _merge(np.unique(trigram_keys % vocab_size**2, return_counts=True), opening)
        unigrams = np.unique(bigrams[0] % vocab_size, return_counts=True)
        self._orders = [
            _Order.build(unigrams[0].astype(np.int64), unigrams[1].astype(np.int64), vocab_size),
            _Order.build(*bigrams, vocab_size),
            _Order.build(trigram_keys, trigram_counts, vocab_size),
        ]

    def log_probs(self, document: np.ndarray) -> np.ndarray:
        """Nats of each token of a document (n,) int, from its second on -> (n - 1,) log P(token | the two before)."""
        tokens = document.astype(np.int64)
        c, b = tokens[1:], tokens[:-1]
        a = np.concatenate([[-1], tokens[:-2]])
        return np.log(self.probability(a, b, c))

    def probability(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        """P(c | a, b), element by element; a = -1 where there is no token before b."""
        v = self.vocab_size
        unigram, bigram, trigram = self._orders
        p = unigram.mix(np.zeros_like(c), c, np.full(len(c), 1 / v))
        p = bigram.mix(b, b * v + c, p)
        # With a = -1 the keys are negative, which no counted n-gram is: the bigram's answer passes through.
        return trigram.mix(a * v + b, (a * v + b) * v + c, p)


def _count(
    documents: Iterable[np.ndarray], vocab_size: int, begin: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(sorted trigrams, counts) and (sorted opening bigrams, counts)."""
    empty = np.empty(0, np.int64), np.empty(0, np.int64)
    trigrams, waiting, size, opening = empty, [], 0, []
    for document in documents:
        tokens = document.astype(np.int64)
        if len(tokens) >= 2 and tokens[0] == begin:
            opening.append(int(tokens[0] * vocab_size + tokens[1]))
        waiting.append((tokens[:-2] * vocab_size + tokens[1:-1]) * vocab_size + tokens[2:])
        size += len(waiting[-1])
        if size >= BLOCK:
            trigrams = _merge(trigrams, np.unique(np.concatenate(waiting), return_counts=True))
            waiting, size = [], 0
    if waiting:
        trigrams = _merge(trigrams, np.unique(np.concatenate(waiting), return_counts=True))
    return trigrams, np.unique(np.array(opening, np.int64), return_counts=True)


def _merge(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The sum of two sorted counts."""
    keys, inverse = np.unique(np.concatenate([one[0], other[0]]), return_inverse=True)
    counts = np.zeros(len(keys), np.int64)
    np.add.at(counts, inverse, np.concatenate([one[1], other[1]]))
    return keys, counts


def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of each key in the sorted table (0 where it is not there), and whether it is there."""
    if not len(table):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    found = table[place] == keys
    return np.where(found, place, 0), found
