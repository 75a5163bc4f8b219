"""Limits against an independent reference: the other form of GCRA, in fractions, that a specification gives.

Every test of a store runs on all: in memory, in SQLite and in PostgreSQL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musespark.accounts.database import Database
from musespark.accounts.limits import DAY_MS, LARGEST_LIMIT, MINUTE_MS, Cap, Limits, LimitStore, Rate, Standing
from musespark.accounts.limits_memory import SWEEP_EVERY, MemoryLimitStore
from musespark.accounts.limits_shared import LEASE_MS, SharedLimitStore
from musespark.errors import ConcurrencyLimitExceeded, InvalidRequest, RateLimitExceeded, RequestExceedsLimit

START_MS = 1_764_000_000_000


class Clock:
    def __init__(self) -> None:
        self.ms = START_MS

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, clock: Clock, state_dir: Path) -> Iterator[LimitStore]:
    if request.param == "memory":
        yield MemoryLimitStore(clock)
        return
    url = request.getfixturevalue("postgres").new_database() if request.param == "postgresql" else None
    database = Database.open(state_dir, url)
    yield SharedLimitStore(database, clock)
    database.close()


def rate(limit: int, unit: str = "requests", period: str = "minute", kind: str = "key", subject: str = "key_a") -> Rate:
    return Rate(kind, subject, unit, period, limit)  # type: ignore[arg-type]


def takes(store: LimitStore, rates: list[Rate], **costs: int) -> bool:
    try:
        store.take(rates, costs)  # type: ignore[arg-type]
    except RateLimitExceeded:
        return False
    return True


# Each limit on both sides


@pytest.mark.parametrize("unit", ["requests", "tokens", "images"])
@pytest.mark.parametrize(("period", "period_ms"), [("minute", MINUTE_MS), ("day", DAY_MS)])
@pytest.mark.parametrize("kind", ["organisation", "project", "key"])
def test_a_full_limit_passes_and_one_more_is_refused_until_its_time(
    store: LimitStore, clock: Clock, unit: str, period: str, period_ms: int, kind: str
) -> None:
    limit = 8
    rates = [rate(limit, unit, period, kind)]
    for left in range(limit - 1, -1, -1):
        [standing] = store.take(rates, {unit: 1})  # type: ignore[dict-item]
        assert standing == Standing(rates[0], left, (limit - left) * period_ms // limit)
    with pytest.raises(RateLimitExceeded) as refused:
        store.take(rates, {unit: 1})  # type: ignore[dict-item]
    assert refused.value.retry_after_ms == period_ms // limit
    assert f"the {kind} key_a may use 8 {unit} a {period}" in refused.value.message
    clock.ms += period_ms // limit - 1
    assert not takes(store, rates, **{unit: 1})
    clock.ms += 1
    assert takes(store, rates, **{unit: 1})
    assert not takes(store, rates, **{unit: 1})


def test_many_units_at_once_fit_up_to_the_limit(store: LimitStore) -> None:
    rates = [rate(100, "tokens")]
    assert takes(store, rates, tokens=99)
    assert not takes(store, rates, tokens=2)
    assert takes(store, rates, tokens=1)


def test_what_can_never_fit_is_not_told_to_come_back(store: LimitStore) -> None:
    store.take([rate(100, "tokens")], {"tokens": 100})
    with pytest.raises(RequestExceedsLimit, match="needs 101 tokens, and the key key_a may use 100 a minute"):
        store.take([rate(100, "tokens")], {"tokens": 101})
    with pytest.raises(RequestExceedsLimit, match="0 a minute"):
        store.take([rate(0)], {"requests": 1})


def test_a_refusal_by_one_limit_uses_nothing_of_the_others(store: LimitStore) -> None:
    wide, narrow = rate(5, kind="organisation", subject="org_a"), rate(1)
    assert takes(store, [wide, narrow], requests=1)
    for _ in range(10):
        assert not takes(store, [wide, narrow], requests=1)
    [left] = store.take([wide], {})
    assert left.remaining == 4


def test_the_longest_wait_is_the_one_that_is_told(store: LimitStore) -> None:
    rates = [rate(1, period="day"), rate(2)]
    store.take(rates, {"requests": 1})
    with pytest.raises(RateLimitExceeded, match="a day") as refused:
        store.take(rates, {"requests": 1})
    assert refused.value.retry_after_ms == DAY_MS


def test_a_limit_of_tokens_is_not_touched_by_a_request_without_any(store: LimitStore) -> None:
    rates = [rate(1, "tokens"), rate(10)]
    assert takes(store, rates, requests=1, tokens=1)
    assert takes(store, rates, requests=1)


def test_the_largest_limit_is_counted_exactly(store: LimitStore, clock: Clock) -> None:
    rates = [rate(LARGEST_LIMIT, "tokens", "day")]
    assert takes(store, rates, tokens=LARGEST_LIMIT)
    assert not takes(store, rates, tokens=LARGEST_LIMIT)
    store.correct(rates, {"tokens": LARGEST_LIMIT})
    clock.ms += 2 * DAY_MS - 1
    assert not takes(store, rates, tokens=LARGEST_LIMIT)
    clock.ms += 1
    assert takes(store, rates, tokens=LARGEST_LIMIT)


@pytest.mark.parametrize("value", [-1, LARGEST_LIMIT + 1, 1.5, True, "7"])
def test_a_limit_that_makes_no_sense_is_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidRequest, match="tokens_per_day"):
        Limits(tokens_per_day=value)  # type: ignore[arg-type]


# What was taken and what was used


def test_what_was_not_used_can_be_used_by_others_at_once(store: LimitStore) -> None:
    rates = [rate(100, "tokens")]
    store.take(rates, {"tokens": 100})
    store.correct(rates, {"tokens": -60})
    assert takes(store, rates, tokens=60)
    assert not takes(store, rates, tokens=1)


def test_what_was_used_beyond_the_limit_is_waited_for(store: LimitStore, clock: Clock) -> None:
    rates = [rate(60, "tokens")]
    store.take(rates, {"tokens": 60})
    store.correct(rates, {"tokens": 30})
    clock.ms += 30_000
    assert not takes(store, rates, tokens=1)
    clock.ms += 1_000
    assert takes(store, rates, tokens=1)


def test_nobody_is_locked_out_for_more_than_two_periods(store: LimitStore, clock: Clock) -> None:
    rates = [rate(60, "tokens")]
    store.correct(rates, {"tokens": 10**9})
    clock.ms += 2 * MINUTE_MS
    assert takes(store, rates, tokens=60)


def test_returning_more_than_was_taken_gives_no_credit(store: LimitStore) -> None:
    rates = [rate(60, "tokens")]
    store.correct(rates, {"tokens": -1000})
    assert takes(store, rates, tokens=60)
    assert not takes(store, rates, tokens=1)


def test_a_raised_limit_holds_at_once_and_forgets_nothing(store: LimitStore) -> None:
    store.take([rate(10)], {"requests": 10})
    [left] = store.take([rate(15)], {})
    assert left.remaining == 5


def test_a_lowered_limit_is_waited_for_and_then_met(store: LimitStore, clock: Clock) -> None:
    store.take([rate(1000)], {"requests": 1000})
    assert not takes(store, [rate(10)], requests=1)
    clock.ms += 100 * MINUTE_MS
    assert takes(store, [rate(10)], requests=10)


# Clocks


def test_a_clock_that_jumps_ahead_fills_a_limit_once(store: LimitStore, clock: Clock) -> None:
    assert takes(store, [rate(3)], requests=3)
    clock.ms += 365 * DAY_MS
    assert takes(store, [rate(3)], requests=3)
    assert not takes(store, [rate(3)], requests=1)


def test_a_clock_that_goes_back_gives_nothing_and_locks_nobody_out(clock: Clock, database: Database) -> None:
    """Only for the shared store: the other one asks a clock that never goes back."""
    store = SharedLimitStore(database, clock)
    assert takes(store, [rate(6)], requests=6)
    clock.ms -= 365 * DAY_MS
    assert not takes(store, [rate(6)], requests=1)
    clock.ms += MINUTE_MS // 6 - 1
    assert not takes(store, [rate(6)], requests=1)
    clock.ms += 1
    assert takes(store, [rate(6)], requests=1)


def test_without_a_clock_of_its_own_a_shared_store_asks_the_database(database: Database) -> None:
    store = SharedLimitStore(database)
    assert takes(store, [rate(1)], requests=1)
    with pytest.raises(RateLimitExceeded) as refused:
        store.take([rate(1)], {"requests": 1})
    assert MINUTE_MS - 5000 < refused.value.retry_after_ms <= MINUTE_MS
    store.enter([Cap("key", "key_a", 1)], "req_1")
    store.renew(["req_1"])
    with pytest.raises(ConcurrencyLimitExceeded):
        store.enter([Cap("key", "key_a", 1)], "req_2")


# The reference


class Gcra:
    """The virtual scheduling form: a theoretical arrival time instead of a level, in exact fractions."""

    def __init__(self, limit: int, period_ms: int) -> None:
        self.interval = Fraction(period_ms, limit)
        self.period_ms = period_ms
        self.arrival = Fraction(0)

    def take(self, cost: int, now_ms: int) -> bool:
        arrival = max(self.arrival, Fraction(now_ms)) + cost * self.interval
        if arrival - now_ms > self.period_ms:
            return False
        self.arrival = arrival
        return True


uses = st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 7)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(limit=st.integers(7, 23), uses=uses)
def test_memory_decides_as_the_specification_does(limit: int, uses: list[tuple[int, int]]) -> None:
    clock = Clock()
    store, reference = MemoryLimitStore(clock), Gcra(limit, MINUTE_MS)
    for elapsed_ms, cost in uses:
        clock.ms += elapsed_ms
        assert takes(store, [rate(limit)], requests=cost) == reference.take(cost, clock.ms)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_memory_and_database_answer_alike(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    clock = Clock()
    database = Database.open(tmp_path_factory.mktemp("twins") / "state")
    twins: list[LimitStore] = [MemoryLimitStore(clock), SharedLimitStore(database, clock)]
    rates = [
        rate(data.draw(st.integers(1, 30)), unit, period, subject=subject)
        for subject in ("org_a", "key_b")
        for unit in ("requests", "tokens")
        for period in ("minute", "day")
    ]
    try:
        for _ in range(data.draw(st.integers(1, 25))):
            clock.ms += data.draw(st.sampled_from([0, 1, 999, 2_000, 31_000, 3_600_000]))
            costs = {"requests": data.draw(st.integers(0, 3)), "tokens": data.draw(st.integers(0, 40))}
            if data.draw(st.booleans()):
                assert len({outcome(twin, rates, costs) for twin in twins}) == 1
            else:
                costs["tokens"] -= 20
                for twin in twins:
                    twin.correct(rates, costs)  # type: ignore[arg-type]
    finally:
        database.close()


def outcome(store: LimitStore, rates: list[Rate], costs: dict[str, int]) -> tuple[object, ...]:
    try:
        return tuple(store.take(rates, costs))  # type: ignore[arg-type]
    except RateLimitExceeded as error:
        return error.code, error.message, error.retry_after_ms
    except RequestExceedsLimit as error:
        return error.code, error.message


# Many at once


def test_many_threads_get_what_there_is_and_no_more(store: LimitStore) -> None:
    rates = [rate(40), rate(55, kind="organisation", subject="org_a")]
    passed: list[bool] = []

    def work() -> None:
        for _ in range(15):
            passed.append(takes(store, rates, requests=1))

    in_threads(work, 8)
    assert passed.count(True) == 40
    assert len(passed) == 120


def test_as_many_run_at_the_same_time_as_may(store: LimitStore) -> None:
    cap = Cap("key", "key_a", 3)
    entered: list[str] = []

    def work() -> None:
        for number in range(5):
            name = f"{threading.get_ident()}-{number}"
            try:
                store.enter([cap], name)
                entered.append(name)
            except ConcurrencyLimitExceeded:
                pass

    in_threads(work, 6)
    assert len(entered) == 3
    store.leave(entered[0])
    store.leave(entered[0])  # leaving twice frees one place, not two
    store.enter([cap], "another")
    with pytest.raises(ConcurrencyLimitExceeded, match="may have 3 requests running") as refused:
        store.enter([cap], "one too many")
    assert refused.value.retry_after_ms == 1000


def test_a_request_that_one_cap_refuses_runs_under_none(store: LimitStore) -> None:
    wide, narrow = Cap("organisation", "org_a", 2), Cap("key", "key_a", 1)
    store.enter([wide, narrow], "first")
    with pytest.raises(ConcurrencyLimitExceeded, match="the key key_a"):
        store.enter([wide, narrow], "second")
    store.enter([wide], "third")
    with pytest.raises(ConcurrencyLimitExceeded, match="the organisation org_a"):
        store.enter([wide], "fourth")


def in_threads(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_the_requests_of_a_dead_process_count_until_their_lease_ends(clock: Clock, database: Database) -> None:
    cap = Cap("key", "key_a", 1)
    alive, dead = SharedLimitStore(database, clock), SharedLimitStore(database, clock)
    dead.enter([cap], "lost")
    clock.ms += LEASE_MS - 1
    with pytest.raises(ConcurrencyLimitExceeded):
        alive.enter([cap], "new")
    clock.ms += 1
    alive.enter([cap], "new")
    for _ in range(3):
        clock.ms += LEASE_MS - 1
        alive.renew(["new"])
    with pytest.raises(ConcurrencyLimitExceeded):
        alive.enter([cap], "third")


def test_memory_stays_bounded_whatever_keys_come_and_go(clock: Clock) -> None:
    store = MemoryLimitStore(clock)
    for number in range(SWEEP_EVERY + 10):
        store.take([rate(10, subject=f"key_{number}")], {"requests": 1})
        clock.ms += 6_000  # after that this bucket is empty again
    assert len(store._buckets) < 20
