"""Tokens that are paid for while they come: never one more, and a pause instead of a loss."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musespark.engine.allowance import Allowance
from musespark.engine.engine import Engine
from musespark.engine.request import AllowanceEvent, FinishEvent, SampledToken, TokenEvent, Usage
from musespark.engine.service import EngineService, Generation
from musespark.errors import ShuttingDown
from tests.engine.driver import Driver, no_pages_in_use, prompt_of, request
from tests.engine.simulation import Simulation
from tests.fakes import HashRunner, ScriptedRunner, hash_continuation


def run_until_paused(driver: Driver) -> None:
    while driver.engine.can_step:
        driver.step()


def test_used_up_allowance_pauses_and_a_grant_goes_on_where_it_was() -> None:
    driver = Driver(Engine(HashRunner()))
    allowance = Allowance(3)
    seen = driver.submit(request(prompt_of(100), 20, allowance=allowance))
    run_until_paused(driver)
    assert seen.ids() == hash_continuation(prompt_of(100), 3)
    assert driver.engine.has_work
    assert not no_pages_in_use(driver.engine)
    allowance.grant(10)
    run_until_paused(driver)
    assert len(seen.ids()) == 10
    allowance.grant(100)
    driver.run()
    assert seen.ids() == hash_continuation(prompt_of(100), 20)
    assert seen.reasons == {0: "length"}


@pytest.mark.parametrize("granted", [0, 1, 7])
def test_used_up_final_allowance_ends_with_budget_at_the_exact_token(granted: int) -> None:
    driver = Driver(Engine(HashRunner()))
    seen = driver.submit(request(prompt_of(100), 20, allowance=Allowance(granted, final=True)))
    driver.run()
    assert seen.ids() == hash_continuation(prompt_of(100), granted)
    assert seen.reasons == {0: "budget"}
    assert seen.usage == Usage(100 if granted else 0, 0, 0, granted, 0)
    assert driver.engine.stats().num_finished_total["budget"] == 1
    assert no_pages_in_use(driver.engine)


def test_last_grant_while_paused_ends_what_it_does_not_pay_for() -> None:
    driver = Driver(Engine(HashRunner()))
    allowance = Allowance(3)
    seen = driver.submit(request(prompt_of(10), 20, allowance=allowance))
    run_until_paused(driver)
    allowance.grant(3, final=True)
    driver.run()
    assert (len(seen.ids()), seen.reasons) == (3, {0: "budget"})


def test_what_a_request_has_used_can_be_asked_while_it_waits_for_more() -> None:
    driver = Driver(Engine(HashRunner()))
    allowance = Allowance(3)
    assert allowance.usage is None
    driver.submit(request(prompt_of(100), 20, allowance=allowance))
    assert allowance.usage is not None
    assert allowance.usage() == Usage(0, 0, 0, 0, 0)
    run_until_paused(driver)
    assert allowance.usage() == Usage(100, 0, 0, 3, 0)


def test_natural_end_at_the_last_paid_token_is_no_matter_of_budget() -> None:
    driver = Driver(Engine(HashRunner()))
    by_length = driver.submit(request(prompt_of(10), 5, allowance=Allowance(5, final=True)))
    driver.run()
    assert by_length.reasons == {0: "length"}
    driver = Driver(Engine(ScriptedRunner(lambda position: 77 if position == 13 else 78)))
    by_stop = driver.submit(request(prompt_of(10), 9, stop_token_ids=frozenset({77}), allowance=Allowance(5, True)))
    driver.run()
    assert by_stop.reasons == {0: "stop"}
    assert by_stop.usage is not None
    assert by_stop.usage.completion_tokens == 5


@pytest.mark.parametrize("granted", range(1, 14))
def test_choices_share_one_allowance_to_the_token(granted: int) -> None:
    driver = Driver(Engine(HashRunner()))
    seen = driver.submit(request(prompt_of(70), 4, n=3, allowance=Allowance(granted, final=True)))
    driver.run()
    assert sum(len(seen.ids(index)) for index in range(3)) == min(granted, 12)
    assert seen.usage is not None
    assert seen.usage.completion_tokens == min(granted, 12)
    for index in range(3):
        assert seen.ids(index) == hash_continuation(prompt_of(70), len(seen.ids(index)))
        assert seen.reasons[index] == ("length" if len(seen.ids(index)) == 4 else "budget")


def test_prompt_is_computed_up_to_the_token_that_is_not_paid_for() -> None:
    driver = Driver(Engine(HashRunner(), max_batch_tokens=64))
    allowance = Allowance(1)
    first = driver.submit(request(prompt_of(100), 5, n=2, allowance=allowance))
    run_until_paused(driver)
    assert [len(first.ids(0)), len(first.ids(1))] == [1, 0]
    allowance.grant(10)
    driver.run()
    assert first.ids(1) == first.ids(0) == hash_continuation(prompt_of(100), 5)


def test_more_is_asked_for_once_a_grant_and_before_it_is_used_up() -> None:
    driver = Driver(Engine(HashRunner()))
    allowance = Allowance(10)
    asked: list[tuple[int, int]] = []
    driver.submit(request(prompt_of(10), 100, allowance=allowance, id="x"))
    while driver.engine.can_step:
        for event in driver.engine.step():
            if isinstance(event, AllowanceEvent):
                asked.append((event.completion_tokens, event.granted))
        if asked and asked[-1] == (6, 10) and allowance.granted == 10:
            allowance.grant(30)
    assert asked == [(6, 10), (21, 30)]  # less than half of 10, less than half of the 20 that came then


def test_nothing_is_asked_for_that_could_never_be_used() -> None:
    driver = Driver(Engine(HashRunner()))
    driver.submit(request(prompt_of(10), 5, n=2, allowance=Allowance(10)))
    events = []
    while driver.engine.has_work:
        events += driver.engine.step()
    assert not any(isinstance(event, AllowanceEvent) for event in events)


def test_paused_request_is_the_first_to_lose_its_place_and_its_pages() -> None:
    driver = Driver(Engine(HashRunner(num_full_pages=6, num_sliding_pages=6), max_running=1))
    allowance = Allowance(4)
    paused = driver.submit(request(prompt_of(200, 1), 30, allowance=allowance))
    run_until_paused(driver)
    other = driver.submit(request(prompt_of(200, 2), 30))
    run_until_paused(driver)
    assert other.ids() == hash_continuation(prompt_of(200, 2), 30)
    assert driver.engine.stats().num_preemptions_total == 1
    allowance.grant(30)
    driver.run()
    assert paused.ids() == hash_continuation(prompt_of(200, 1), 30)
    assert paused.usage == Usage(200, 0, 0, 30, 0)  # what was computed again counts once


def test_abort_while_paused_frees_everything() -> None:
    driver = Driver(Engine(HashRunner()))
    seen = driver.submit(request(prompt_of(100), 20, id="x", n=2, allowance=Allowance(5)))
    run_until_paused(driver)
    driver.cancel("x")
    assert seen.reasons == {0: "cancelled", 1: "cancelled"}
    assert seen.usage == Usage(100, 0, 0, 5, 0)
    assert not driver.engine.has_work
    assert no_pages_in_use(driver.engine)


def test_grants_only_grow_and_end_with_the_final_one() -> None:
    allowance = Allowance(5)
    with pytest.raises(ValueError, match="can't be taken back"):
        allowance.grant(4)
    allowance.grant(5)
    allowance.grant(8, final=True)
    with pytest.raises(ValueError, match="nothing can follow"):
        allowance.grant(9)
    with pytest.raises(ValueError, match="negative"):
        Allowance(-1)
    assert (allowance.granted, allowance.final) == (8, True)


@given(
    grants=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    n=st.integers(1, 4),
    pages=st.integers(4, 12),
    steps=st.lists(st.integers(0, 12), min_size=6, max_size=6),
)
def test_never_a_token_too_many_however_grants_come(grants: list[int], n: int, pages: int, steps: list[int]) -> None:
    driver = Driver(Engine(HashRunner(num_full_pages=pages, num_sliding_pages=pages), max_batch_tokens=70))
    allowance = Allowance(grants[0])
    seen = driver.submit(request(prompt_of(90), 20, n=n, allowance=allowance))
    other = driver.submit(request(prompt_of(60, 7), 40))

    def step(times: int) -> None:
        for _ in range(times):
            if driver.engine.can_step:
                driver.step()
            assert sum(len(seen.ids(index)) for index in range(n)) <= allowance.granted

    total = grants[0]
    for grant, times in zip(grants[1:], steps, strict=False):
        step(times)
        total += grant
        allowance.grant(total)
    step(1000)
    assert other.ended
    assert sum(len(seen.ids(index)) for index in range(n)) == min(total, 20 * n)
    allowance.grant(total, final=True)
    driver.run()
    assert seen.ended
    assert no_pages_in_use(driver.engine)


def test_grants_from_another_thread_wake_the_service_whatever_their_moment() -> None:
    async def scenario() -> None:
        service = EngineService(Engine(HashRunner()))

        async def client(seed: int) -> None:
            allowance = Allowance(1)
            chance = random.Random(seed)
            tokens: list[int] = []
            reason = None
            generation = service.generate(request(prompt_of(10, seed), 40, allowance=allowance))
            async for event in generation:
                if isinstance(event, AllowanceEvent):
                    total = min(allowance.granted + chance.randint(1, 9), 33)
                    grant = threading.Timer(chance.random() / 500, allowance.grant, (total,), {"final": total == 33})
                    grant.start()
                elif isinstance(event, TokenEvent):
                    tokens += [delta.id for delta in event.deltas if isinstance(delta, SampledToken)]
                    assert len(tokens) <= allowance.granted
                elif isinstance(event, FinishEvent):
                    reason = event.reason
            assert (tokens, reason) == (hash_continuation(prompt_of(10, seed), 33), "budget")
            assert generation.usage == Usage(10, 0, 0, 33, 0)

        await asyncio.gather(*(client(seed) for seed in range(40)))
        await service.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_grant_for_an_ended_request_is_harmless() -> None:
    async def scenario() -> None:
        service = EngineService(Engine(HashRunner()))
        allowance = Allowance(5)
        async with contextlib.aclosing(service.generate(request(prompt_of(10), 5, allowance=allowance))) as generation:
            async for _ in generation:
                pass
        allowance.grant(20)
        aborted = Allowance(5)
        generation = service.generate(request(prompt_of(10), 50, allowance=aborted))
        await generation.admitted()
        granting = threading.Thread(target=aborted.grant, args=(50,))
        granting.start()
        await generation.aclose()
        granting.join()
        assert generation.usage is not None
        assert generation.usage.completion_tokens <= 50
        await service.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_close_ends_those_that_nobody_grants_any_more() -> None:
    async def scenario() -> None:
        service = EngineService(Engine(HashRunner()))
        generation = service.generate(request(prompt_of(10), 50, allowance=Allowance(5)))
        await generation.admitted()
        await service.close(drain_timeout_s=0.1)
        with pytest.raises(ShuttingDown):
            async for _ in generation:
                pass
        assert generation.usage == Usage(10, 0, 0, 5, 0)

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_paused_service_takes_no_time() -> None:
    async def scenario() -> None:
        service = EngineService(Engine(HashRunner()))
        allowance = Allowance(5)
        generation = service.generate(request(prompt_of(10), 50, allowance=allowance))
        reading = asyncio.create_task(_read_all(generation))
        while service.stats.num_generated_tokens_total < 5:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        clock = time.pthread_getcpuclockid(service._thread.ident or 0)
        before_s = time.clock_gettime(clock)
        await asyncio.sleep(0.3)
        assert time.clock_gettime(clock) - before_s < 0.05
        assert service.stats.paused == 1
        allowance.grant(50)
        await reading
        assert generation.usage == Usage(10, 0, 0, 50, 0)
        await service.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


async def _read_all(generation: Generation) -> None:
    async for _ in generation:
        pass


class GrantedWhileItIsRead(Allowance):
    """Grants 10 more just before it is read for the `moment`-th time after 3 tokens: as if by another thread."""

    def __init__(self, moment: int) -> None:
        super().__init__(3)
        self.num_reads = -1_000_000
        self.moment = moment

    @property
    def granted(self) -> int:
        self.num_reads += 1
        if self.num_reads == self.moment:
            self.grant(13, final=True)
        return self._state[0]


@pytest.mark.parametrize("moment", range(1, 25))
def test_grant_at_any_moment_of_a_step_is_no_failure(moment: int) -> None:
    driver = Driver(Engine(HashRunner()))
    allowance = GrantedWhileItIsRead(moment)
    seen = driver.submit(request(prompt_of(10), 20, n=2, allowance=allowance))
    run_until_paused(driver)
    allowance.num_reads = 0
    for _ in range(40):
        if driver.engine.has_work:
            driver.step()
    assert seen.error is None
    assert set(seen.reasons.values()) == {"budget"}
    assert seen.usage == Usage(10, 0, 0, 13, 0)


class GrantedAtRead(Allowance):
    """Grants 10 tokens just before it is read for the `moment`-th time, once that is set."""

    moment = 1_000_000

    @property
    def granted(self) -> int:
        self.moment -= 1
        if self.moment == 0:
            self.grant(11)
        return self._state[0]


@pytest.mark.parametrize("moment", range(1, 8))
def test_grant_while_room_is_made_for_another_leaves_room(moment: int) -> None:
    """The first in order is paused, so its pages may go to the second; granted meanwhile, it must not keep them."""
    simulation = Simulation(num_pages=5, max_batch_tokens=200)
    allowance = GrantedAtRead(1)
    [first] = simulation.add("first", 120, allowance=allowance)
    [second] = simulation.add("second", 120)
    simulation.step()
    first.state.completion_tokens = 1  # and there it stands, with two pages
    while second.num_tokens < 193:
        assert set(simulation.step()) == {"second"}
    allowance.moment = moment
    assert simulation.step()
