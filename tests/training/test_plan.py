from collections import Counter

import pytest

from musespark.training.plan import Plan
from musespark.training.recipe import Phase

PHASES = (Phase("one", 50, {"a": 3, "b": 1}), Phase("two", 50, {"b": 1, "c": 1}))
SIZES = {"a": 40, "b": 7, "c": 100}


def plan(seed: int = 1) -> Plan:
    return Plan(PHASES, SIZES, rows_per_step=8, seed=seed)


def test_a_source_hands_out_every_row_once_before_it_repeats_one() -> None:
    whole = plan()
    taken = [index for step in range(50) for name, index in whole.rows(0, step) if name == "a"]
    assert sorted(taken[:40]) == list(range(40))
    assert sorted(taken[40:80]) == list(range(40))
    assert taken[:40] != taken[40:80]


def test_each_step_mixes_as_the_phase_says() -> None:
    p = plan()
    for step in range(20):
        counts = Counter(name for name, _ in p.rows(0, step))
        assert counts == {"a": 6, "b": 2}


def test_shares_smaller_than_a_row_are_right_on_average() -> None:
    phases = (Phase("rare", 400, {"a": 19, "b": 1}),)
    p = Plan(phases, SIZES, rows_per_step=4, seed=1)
    counts = Counter(name for step in range(400) for name, _ in p.rows(0, step))
    assert counts["b"] == pytest.approx(80, abs=20)


def test_a_resumed_plan_goes_on_where_the_first_one_stopped() -> None:
    whole = plan()
    first = [whole.rows(0, step) for step in range(30)]
    rest = [whole.rows(1, step) for step in range(10)]
    resumed = plan()
    resumed.skip(0, 30)
    resumed.skip(1, 4)
    assert first
    assert [resumed.rows(1, step) for step in range(4, 10)] == rest[4:]


def test_another_seed_is_another_order() -> None:
    assert plan(seed=1).rows(0, 0) != plan(seed=2).rows(0, 0)


def test_a_source_keeps_its_order_when_another_one_joins() -> None:
    alone = Plan((Phase("p", 9, {"b": 1}),), {"b": 7}, rows_per_step=4, seed=1)
    joined = Plan((Phase("p", 9, {"b": 1}),), {"a": 3, "b": 7}, rows_per_step=4, seed=1)
    assert alone.rows(0, 0) == joined.rows(0, 0)
