"""Random load on the model in the box: a short run of benchmarks/soak.py, and a long one that is marked slow."""

from __future__ import annotations

import pytest

from benchmarks.soak import has_grown, run


def soak(seconds: float, epoch_s: float) -> list[dict[str, float]]:
    rows = list(run(seconds, epoch_s, num_clients=12, seed=1))
    assert rows[-1]["answered"] > 20
    assert rows[-1]["left"] > 3
    assert rows[-1].get("failed", 0) == 0
    assert rows[-1]["checked"] >= 1
    return rows


def test_random_load_ends_with_every_page_free() -> None:
    soak(12, epoch_s=4)


@pytest.mark.slow
def test_random_load_of_half_an_hour_leaves_memory_flat() -> None:
    assert not has_grown([row["resident_mib"] for row in soak(1800, epoch_s=60)])


def test_memory_has_grown_if_the_last_third_takes_more() -> None:
    assert not has_grown([100, 120, 110, 118, 119, 121])
    assert has_grown([100, 102, 101, 105, 110, 112])
    assert not has_grown([100.0])
