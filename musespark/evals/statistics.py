"""Means with standard errors, and paired differences with confidence intervals, both over clusters.

Items that share an origin (sentences from one template, questions on one text) are not independent; whole clusters are
resampled, as in Miller, "Adding Error Bars to Evals" (arXiv 2411.00640).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from musespark.evals.task import Outcome

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    mean: float
    standard_error: float  # NaN where there is one cluster only
    num_items: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two models on the same items: `mean` is candidate minus incumbent."""

    mean: float
    low: float
    high: float
    num_items: int
    confidence: float


def estimate(outcomes: Sequence[Outcome]) -> Estimate:
    """The weighted mean and its standard error. Raises ValueError if there is no outcome."""
    if not outcomes:
        raise ValueError("there is nothing to take the mean of")
    total = math.fsum(o.weight for o in outcomes)
    mean = math.fsum(o.weight * o.value for o in outcomes) / total
    sums: defaultdict[tuple[str, bool], float] = defaultdict(float)
    for o in outcomes:
        sums[_cluster(o)] += o.weight * (o.value - mean)
    count = len(sums)
    if count < 2:
        return Estimate(mean, math.nan, len(outcomes))
    squares = math.fsum(s * s for s in sums.values()) * count / (count - 1)
    return Estimate(mean, math.sqrt(squares) / total, len(outcomes))


def paired_difference(
    candidate: Sequence[Outcome], incumbent: Sequence[Outcome], *, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Bootstrap interval of the mean difference over the items that both have. Raises ValueError if there is none."""
    others = {o.id: o for o in incumbent}
    shared = [(o, others[o.id]) for o in candidate if o.id in others]
    if not shared:
        raise ValueError("the two have no item in common")
    gains: defaultdict[tuple[str, bool], float] = defaultdict(float)
    weights: defaultdict[tuple[str, bool], float] = defaultdict(float)
    for one, other in shared:
        gains[_cluster(one)] += one.weight * (one.value - other.value)
        weights[_cluster(one)] += one.weight
    gain, weight = np.array(list(gains.values())), np.array(list(weights.values()))
    rng = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(len(gain), size=len(gain))
        means[i] = gain[drawn].sum() / weight[drawn].sum()
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Difference(float(gain.sum() / weight.sum()), float(low), float(high), len(shared), confidence)


def _cluster(outcome: Outcome) -> tuple[str, bool]:
    """An item without a cluster is one; the flag keeps it apart from a cluster that has its name."""
    return (outcome.cluster, True) if outcome.cluster else (outcome.id, False)
