"""Nobody starves, whatever the others ask for: on a simulated schedule, and at the door."""

from __future__ import annotations

from collections import Counter

import pytest

from musespark.engine.admission import queue_is_full
from musespark.engine.engine import Engine
from musespark.engine.fairness import FairShare
from musespark.errors import Overloaded
from tests.engine.driver import Driver, prompt_of, request
from tests.engine.simulation import Simulation
from tests.fakes import HashRunner

BATCH, RUNNING = 64, 8
QUANTUM = 4 * BATCH  # of a scheduler with this batch


def crowd(num_requests: int = 60, length: int = 200, max_tokens: int = 400) -> Simulation:
    """A tenant with so many long requests that every place is taken for thousands of steps."""
    simulation = Simulation(num_pages=400, max_batch_tokens=BATCH, max_running=RUNNING)
    for number in range(num_requests):
        simulation.add(f"crowd{number}", length, max_tokens=max_tokens, tenant="crowd")
    return simulation


@pytest.mark.parametrize("arrival", [1, 20, 200, 1000])
def test_short_request_beside_sixty_long_ones_waits_a_bounded_time(arrival: int) -> None:
    simulation = crowd()
    for _ in range(arrival):
        simulation.step()
    simulation.add("late", 60, max_tokens=20, tenant="somebody")
    while "late" not in simulation.finished:
        simulation.step()
    # The crowd is charged 4 for each token of 8 streams: after so many steps it is a quantum ahead and gives way.
    wait = QUANTUM // (4 * RUNNING) + 4
    assert simulation.first_token["late"] - arrival <= wait
    assert simulation.finished["late"] - arrival <= wait + 20


def test_short_request_does_not_wait_for_the_long_prompts_before_it() -> None:
    simulation = Simulation(num_pages=1000, max_batch_tokens=BATCH)
    for number in range(6):
        simulation.add(f"long{number}", 6400, max_tokens=5, tenant="crowd")
    simulation.step()
    simulation.add("late", 60, max_tokens=5, tenant="somebody")
    simulation.step()
    simulation.step()
    assert "late" in simulation.first_token


def test_tenants_get_equal_shares_however_many_requests_they_have() -> None:
    simulation = crowd()
    for number in range(10):
        simulation.add(f"few{number}", 200, max_tokens=400, tenant="few")
    tokens: Counter[str] = Counter()
    for _ in range(900):
        before = {sequence: sequence.num_generated for sequence in simulation.names}
        simulation.step()
        for sequence, count in before.items():
            tokens[sequence.request.tenant] += sequence.num_generated - count
    assert 0.9 < tokens["few"] / tokens["crowd"] < 1.1


def test_three_tenants_and_everybody_ends() -> None:
    simulation = crowd(num_requests=20, max_tokens=60)
    for number in range(5):
        simulation.add(f"b{number}", 300, max_tokens=60, tenant="b")
        simulation.add(f"c{number}", 30, max_tokens=200, tenant="c")
    for _ in range(3000):
        if not simulation.names:
            break
        simulation.step()
    assert len(simulation.finished) == 30
    assert simulation.scheduler.num_preemptions < 30


def test_one_tenant_alone_is_served_in_the_order_of_arrival() -> None:
    simulation = crowd(num_requests=20, max_tokens=30)
    while simulation.names:
        simulation.step()
    ends = [simulation.finished[f"crowd{number}"] for number in range(20)]
    assert ends == sorted(ends)
    assert simulation.scheduler.num_preemptions == 0


def test_pause_earns_nothing_and_leaving_forgives_nothing() -> None:
    fair = FairShare(quantum=100)
    fair.enter("busy")
    fair.charge("busy", 1000)
    fair.enter("new")
    assert fair.counter("new") == 1000
    fair.charge("new", 500)
    fair.leave("new")
    fair.charge("busy", 200)
    fair.enter("new")
    assert fair.counter("new") == 1500
    fair.leave("new")
    fair.charge("busy", 800)
    fair.enter("new")
    assert fair.counter("new") == 2000


@pytest.mark.parametrize(("cost", "ahead"), [(100, False), (101, True)])
def test_small_differences_are_no_injustice(cost: int, ahead: bool) -> None:
    fair = FairShare(quantum=100)
    fair.enter("one")
    fair.enter("other")
    fair.charge("one", cost)
    assert fair.is_ahead("one", "other") is ahead
    assert not fair.is_ahead("other", "one")


def test_counters_of_tenants_that_left_do_not_pile_up() -> None:
    fair = FairShare(quantum=100)
    fair.enter("stays")
    for number in range(1000):
        fair.enter(f"t{number}")
        fair.charge(f"t{number}", 10)
        fair.leave(f"t{number}")
        fair.charge("stays", 5)
    assert len(fair._counters) < 10


@pytest.mark.parametrize(
    ("waiting", "tenant", "full"),
    [
        ({"crowd": 7}, "crowd", False),
        ({"crowd": 8}, "crowd", True),
        ({"crowd": 8}, "new", False),
        ({"crowd": 8, "new": 3}, "new", False),
        ({"crowd": 8, "new": 4}, "new", True),
        ({"crowd": 8, "a": 2, "b": 2}, "crowd", True),
        ({"crowd": 8, "a": 2, "b": 2, "c": 2}, "d", False),
        ({"crowd": 8, "a": 2, "b": 2, "c": 2, "d": 2}, "e", True),  # twice the limit
        ({}, "new", False),
    ],
)
def test_full_queue_has_room_for_those_with_less_than_their_share(
    waiting: dict[str, int], tenant: str, full: bool
) -> None:
    assert queue_is_full(Counter(waiting), tenant, limit=8) is full


def test_tenant_that_fills_the_queue_does_not_keep_the_others_out() -> None:
    driver = Driver(Engine(HashRunner(), max_running=1, max_waiting=4))
    for seed in range(5):
        driver.submit(request(prompt_of(10, seed), 200, tenant="crowd"))
    with pytest.raises(Overloaded):
        driver.submit(request(prompt_of(10), tenant="crowd"))
    seen = driver.submit(request(prompt_of(10), tenant="somebody"))
    driver.run()
    assert seen.reasons == {0: "length"}
