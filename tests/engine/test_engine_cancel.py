"""A cancelled request is gone at once, in whatever state it is."""

from __future__ import annotations

import pytest

from musespark.engine.engine import Engine
from musespark.engine.request import Usage
from tests.engine.driver import Driver, no_pages_in_use, picture, prompt_of, request
from tests.fakes import HashRunner, hash_continuation

IMAGE = 10


@pytest.mark.parametrize("steps", range(14))
def test_cancel_at_every_point_frees_the_pages_and_says_what_was_used(steps: int) -> None:
    # 5 steps of prompt in chunks of 64, the last of which gives the first token, then one token a step.
    driver = Driver(Engine(HashRunner(), max_batch_tokens=64))
    seen = driver.submit(request(prompt_of(300), 10, id="x"))
    for _ in range(steps):
        driver.step()
    driver.cancel("x")
    assert not driver.engine.has_work
    assert no_pages_in_use(driver.engine)
    num_tokens = max(0, steps - 4)
    assert seen.ids() == hash_continuation(prompt_of(300), num_tokens)
    assert seen.usage == Usage(min(64 * steps, 300), 0, 0, num_tokens, 0)
    assert seen.reasons == {0: "cancelled"}


@pytest.mark.parametrize("steps", range(12))
def test_cancel_of_one_leaves_its_neighbours_alone(steps: int) -> None:
    driver = Driver(Engine(HashRunner(num_full_pages=12), max_batch_tokens=80, max_running=4))
    shared = prompt_of(130)
    kept = [driver.submit(request(shared + prompt_of(20, seed), 60)) for seed in range(2)]
    driver.submit(request(shared + prompt_of(20, 7), 60, id="x", n=3))
    for _ in range(steps):
        driver.step()
    driver.cancel("x")
    driver.run()
    for seed, seen in enumerate(kept):
        assert seen.ids() == hash_continuation(shared + prompt_of(20, seed), 60)


def test_cancel_while_waiting_and_while_preempted() -> None:
    driver = Driver(Engine(HashRunner(num_full_pages=6, num_sliding_pages=6), max_batch_tokens=64))
    seen = {f"r{seed}": driver.submit(request(prompt_of(60, seed), 200, id=f"r{seed}")) for seed in range(6)}
    while not driver.engine.stats().num_preemptions_total:
        driver.step()
    for sequence in list(driver.engine._scheduler.waiting):
        driver.cancel(sequence.request.id)
        assert seen[sequence.request.id].reasons == {0: "cancelled"}
    driver.run()
    assert any(one.reasons == {0: "length"} for one in seen.values())


def test_cancel_within_an_image() -> None:
    driver = Driver(Engine(HashRunner(), max_batch_tokens=10, max_running=1))
    prompt = [*prompt_of(5), *[IMAGE] * 40]
    driver.submit(request(prompt, 5, id="x", images=(picture(40),), image_spans=((5, 45),)))
    driver.step()
    driver.step()
    driver.cancel("x")
    assert no_pages_in_use(driver.engine)


def test_cancel_of_the_unknown_and_the_ended_says_nothing() -> None:
    driver = Driver(Engine(HashRunner()))
    assert driver.engine.cancel("nobody") == []
    driver.submit(request(prompt_of(4), 2, id="x"))
    driver.run()
    assert driver.engine.cancel("x") == []


def test_finished_choices_stay_finished_when_the_rest_is_cancelled() -> None:
    driver = Driver(Engine(HashRunner(), max_running=1))
    seen = driver.submit(request(prompt_of(4), 5, id="x", n=2))
    while not seen.reasons:
        driver.step()
    driver.step()
    driver.cancel("x")
    assert seen.reasons == {0: "length", 1: "cancelled"}
    assert seen.usage == Usage(4, 0, 0, 6, 0)


def test_thousand_requests_dropped_at_every_age_leave_nothing() -> None:
    driver = Driver(Engine(HashRunner(num_full_pages=24, num_sliding_pages=24), max_batch_tokens=64))
    for number in range(1000):
        driver.submit(request(prompt_of(40 + number % 90, number % 7), 50, id=f"x{number}"))
        if number % 3 == 0:
            driver.step()
        if number >= 20:
            driver.cancel(f"x{number - number % 20}")
            driver.cancel(f"x{number - 20}")
    for number in range(1000):
        driver.cancel(f"x{number}")
    assert not driver.engine.has_work
    assert no_pages_in_use(driver.engine)
    assert all(seen.ended for seen in driver.seen.values())
