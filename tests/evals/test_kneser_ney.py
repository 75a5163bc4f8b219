"""The trigram against a slow one written from the formulas, over dictionaries."""

from collections import Counter

import numpy as np
import pytest

from musespark.evals.kneser_ney import KneserNeyTrigram, modified_discounts

BEGIN, V = 0, 12


def corpus(seed: int = 0, num_documents: int = 60) -> list[np.ndarray]:
    """Documents of a skewed Markov chain, so that n-grams of all small counts exist."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(num_documents):
        tokens = [BEGIN]
        for _ in range(int(rng.integers(3, 25))):
            tokens.append(1 + int((tokens[-1] * 3 + rng.geometric(0.45)) % (V - 1)))
        documents.append(np.array(tokens, np.uint16))
    return documents


class SlowKneserNey:
    """Chen and Goodman's equations, one dictionary look-up at a time."""

    def __init__(self, documents: list[np.ndarray]) -> None:
        three = Counter(tuple(int(t) for t in d[i : i + 3]) for d in documents for i in range(len(d) - 2))
        two: Counter[tuple[int, ...]] = Counter((b, c) for _, b, c in three)
        two.update((int(d[0]), int(d[1])) for d in documents)
        one: Counter[tuple[int, ...]] = Counter((c,) for _, c in two)
        self.counts = [one, two, three]
        self.discounts = [modified_discounts(np.array(list(order.values()))) for order in self.counts]

    def probability(self, context: tuple[int, ...], token: int) -> float:
        order = self.counts[len(context)]
        lower = self.probability(context[1:], token) if context else 1 / V
        after = [count for gram, count in order.items() if gram[:-1] == context]
        if not after:
            return lower
        discount = self.discounts[len(context)]
        count = order[(*context, token)]
        own = count - discount[min(count, 3) - 1] if count else 0.0
        reserved = sum(discount[min(n, 3) - 1] for n in after)
        return float((own + reserved * lower) / sum(after))


@pytest.fixture(scope="module")
def trigram() -> KneserNeyTrigram:
    return KneserNeyTrigram(corpus(), vocab_size=V, begin=BEGIN)


def test_every_probability_equals_the_slow_version(trigram: KneserNeyTrigram) -> None:
    slow = SlowKneserNey(corpus())
    contexts = [(a, b) for a in range(V) for b in range(V)]
    for a, b in contexts[::5]:
        tokens = np.arange(V)
        fast = trigram.probability(np.full(V, a), np.full(V, b), tokens)
        assert fast == pytest.approx([slow.probability((a, b), c) for c in range(V)], rel=1e-9)


def test_probabilities_sum_to_one_after_seen_and_unseen_contexts(trigram: KneserNeyTrigram) -> None:
    for a, b in [(BEGIN, 3), (3, 7), (BEGIN, BEGIN), (11, 11), (-1, BEGIN), (-1, 5)]:
        total = trigram.probability(np.full(V, a), np.full(V, b), np.arange(V)).sum()
        assert total == pytest.approx(1.0, abs=1e-9)


def test_log_probs_of_a_document_use_what_stands_before(trigram: KneserNeyTrigram) -> None:
    document = corpus(seed=1)[0]
    slow = SlowKneserNey(corpus())
    expected = [slow.probability((BEGIN,), int(document[1]))]
    expected += [
        slow.probability((int(document[i - 2]), int(document[i - 1])), int(document[i]))
        for i in range(2, len(document))
    ]
    assert np.exp(trigram.log_probs(document)) == pytest.approx(expected, rel=1e-9)


def test_modified_discounts_by_hand() -> None:
    # n1 = 4, n2 = 2, n3 = 1, n4 = 1: Y = 4 / 8; D1 = 1 - 2·½·2/4, D2 = 2 - 3·½·1/2, D3 = 3 - 4·½·1/1
    counts = np.array([1, 1, 1, 1, 2, 2, 3, 4, 9])
    assert modified_discounts(counts) == pytest.approx([0.5, 1.25, 1.0])


def test_counts_do_not_depend_on_the_size_of_the_blocks(
    monkeypatch: pytest.MonkeyPatch, trigram: KneserNeyTrigram
) -> None:
    monkeypatch.setattr("musespark.evals.kneser_ney.BLOCK", 10)
    small_blocks = KneserNeyTrigram(corpus(), vocab_size=V, begin=BEGIN)
    document = corpus(seed=1)[0]
    assert small_blocks.log_probs(document) == pytest.approx(trigram.log_probs(document), rel=1e-12)


def test_a_trigram_beats_uniform_on_new_text_of_the_same_kind(trigram: KneserNeyTrigram) -> None:
    documents = corpus(seed=2)
    nats = -np.concatenate([trigram.log_probs(d) for d in documents]).mean()
    assert nats < 0.8 * np.log(V)
