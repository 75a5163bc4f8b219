import math

import numpy as np
import pytest

from musespark.evals.statistics import estimate, paired_difference
from musespark.evals.task import Outcome


def outcomes(*values: float, clusters: str = "", weights: tuple[float, ...] = ()) -> list[Outcome]:
    return [
        Outcome(str(i), value, clusters[i] if clusters else "", weights[i] if weights else 1.0)
        for i, value in enumerate(values)
    ]


def test_the_standard_error_is_that_of_a_mean_of_independent_items() -> None:
    found = estimate(outcomes(1.0, 0.0, 1.0, 0.0, 0.5))
    assert (found.mean, found.num_items) == (0.5, 5)
    assert found.standard_error == pytest.approx(0.5 / math.sqrt(5))  # sample deviation 0.5, by hand


def test_items_that_always_agree_with_their_cluster_count_once() -> None:
    """Three clusters of two equal items: the error is that of three items, not of six."""
    clustered = estimate(outcomes(1, 1, 0, 0, 1, 1, clusters="aabbcc"))
    assert clustered.standard_error == pytest.approx(estimate(outcomes(1, 0, 1)).standard_error)


def test_one_cluster_has_no_standard_error() -> None:
    assert math.isnan(estimate(outcomes(1, 0, clusters="aa")).standard_error)


def test_the_mean_of_rates_weighs_them_by_their_bytes() -> None:
    """2 bits a byte on 300 bytes and 4 on 100 are 1,000 bits on 400 bytes."""
    assert estimate(outcomes(2.0, 4.0, weights=(300, 100))).mean == 2.5


def test_a_gain_on_every_item_is_certain_and_noise_around_zero_is_not() -> None:
    incumbent = outcomes(*[0.0] * 40)
    assert paired_difference(outcomes(*[1.0] * 40), incumbent).low == 1.0
    noise = paired_difference(outcomes(*[1.0, -1.0] * 20), incumbent)
    assert noise.low < 0 < noise.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Pairs with a true gain of 0.2: of 100 intervals of 90 %, between 80 and 98 should hold it."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        gains = rng.normal(0.2, 1.0, size=60)
        found = paired_difference(outcomes(*gains), outcomes(*[0.0] * 60), confidence=0.9, seed=trial)
        covered += found.low <= 0.2 <= found.high
    assert 80 <= covered <= 98


def test_only_items_that_both_have_are_compared() -> None:
    found = paired_difference(outcomes(1, 1, 1), outcomes(0, 0))
    assert (found.mean, found.num_items) == (1.0, 2)
    with pytest.raises(ValueError, match="no item in common"):
        paired_difference(outcomes(1), [Outcome("other", 0.0)])
