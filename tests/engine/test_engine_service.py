"""The engine behind asyncio: streams, refusals, disconnects, shutdown. Nobody is left waiting."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from musespark.engine.engine import Engine
from musespark.engine.request import FinishEvent, SampledToken, TokenEvent, Usage, UsageEvent
from musespark.engine.runner import Batch, Float32
from musespark.engine.service import EngineService, Generation
from musespark.errors import ContextTooLong, EngineFailed, InvalidRequest, MuseSparkError, Overloaded, ShuttingDown
from tests.engine.driver import prompt_of, request
from tests.fakes import FailingRunner, HashRunner, hash_continuation


class GatedRunner(HashRunner):
    """Computes a step only when `gate` is open."""

    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        self.gate = threading.Event()
        self.entered = threading.Event()

    def forward(self, batch: Batch) -> Float32:
        self.entered.set()
        if not self.gate.wait(20):
            raise TimeoutError
        return super().forward(batch)


@contextlib.asynccontextmanager
async def serving(runner: HashRunner, **options: int) -> AsyncIterator[EngineService]:
    engine = Engine(runner, **options)
    service = EngineService(engine)
    try:
        yield service
    finally:
        await service.close(drain_timeout_s=20)
    engine.check_integrity()
    assert not engine.has_work
    assert engine.stats().full_pages.used == engine.stats().sliding_pages.used == 0
    assert runner.closed


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))  # type: ignore[arg-type]


async def read(generation: Generation) -> tuple[list[int], Usage | None]:
    tokens = []
    async for event in generation:
        if isinstance(event, TokenEvent):
            tokens += [delta.id for delta in event.deltas if isinstance(delta, SampledToken)]
    return tokens, generation.usage


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_events_come_in_order_and_usage_last() -> None:
    async def scenario() -> None:
        async with serving(HashRunner()) as service:
            events = [event async for event in service.generate(request(prompt_of(90), 5, id="x", n=2))]
        assert isinstance(events[-1], UsageEvent)
        assert events[-1].usage == Usage(90, 0, 0, 10, 0)
        for index in range(2):
            mine = [event for event in events[:-1] if event.index == index]
            assert [type(event) for event in mine] == [TokenEvent] * 5 + [FinishEvent]

    run(scenario)


def test_fifty_clients_at_once_get_what_each_would_get_alone() -> None:
    async def scenario() -> None:
        async with serving(HashRunner(num_full_pages=40, num_sliding_pages=40), max_batch_tokens=100) as service:
            prompts = [prompt_of(10 + 3 * seed, seed) for seed in range(50)]
            answers = await asyncio.gather(*(read(service.generate(request(prompt, 12))) for prompt in prompts))
        for prompt, (tokens, usage) in zip(prompts, answers, strict=True):
            assert tokens == hash_continuation(prompt, 12)
            assert usage == Usage(len(prompt), 0, 0, 12, 0)

    run(scenario)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [({"prompt": [999]}, InvalidRequest), ({"prompt": prompt_of(1000), "max_tokens": 100}, ContextTooLong)],
)
def test_refusal_is_raised_before_the_first_event(fields: dict[str, Any], kind: type[MuseSparkError]) -> None:
    async def scenario() -> None:
        async with serving(HashRunner()) as service:
            generation = service.generate(request(**fields))
            with pytest.raises(kind):
                await generation.admitted()
            with pytest.raises(kind):
                await read(service.generate(request(**fields)))
            await generation.aclose()
            assert generation.usage is None

    run(scenario)


def test_make_output_that_raises_is_an_answer_too() -> None:
    async def scenario() -> None:
        async with serving(HashRunner()) as service:
            with pytest.raises(EngineFailed, match="could not be queued"):
                await service.generate(request([40], make_output=lambda index: 1 / 0)).admitted()
            assert (await read(service.generate(request([40], 2))))[0] == hash_continuation([40], 2)

    run(scenario)


def test_queue_bound_refuses_with_a_hint() -> None:
    async def scenario() -> None:
        runner = GatedRunner()
        async with serving(runner, max_running=1, max_waiting=2) as service:
            accepted = [service.generate(request(prompt_of(5, seed), 2)) for seed in range(3)]
            too_many = service.generate(request(prompt_of(5), 2))
            runner.gate.set()
            for generation in accepted:
                await generation.admitted()
            with pytest.raises(Overloaded) as refusal:
                await too_many.admitted()
            assert refusal.value.retry_after_ms >= 100
            await until(lambda: service.stats.num_overloaded_total == 1)
            await asyncio.gather(*map(read, accepted))
            await read(service.generate(request(prompt_of(5), 2)))

    run(scenario)


def test_a_step_is_one_hop_however_many_clients() -> None:
    async def scenario() -> None:
        runner = HashRunner()
        async with serving(runner, max_running=8) as service:
            hops = []
            loop = asyncio.get_running_loop()
            hop = loop.call_soon_threadsafe
            loop.call_soon_threadsafe = lambda *args: hops.append(1) or hop(*args)  # type: ignore[method-assign]
            await asyncio.gather(*(read(service.generate(request(prompt_of(5, seed), 20))) for seed in range(8)))
            loop.call_soon_threadsafe = hop  # type: ignore[method-assign]
        assert len(hops) == 8 + len(runner.batches)  # each is admitted at its own time

    run(scenario)


def test_closing_early_cancels_and_tells_the_usage() -> None:
    async def scenario() -> None:
        async with serving(HashRunner()) as service:
            generation = service.generate(request(prompt_of(100), 900))
            async for event in generation:
                if isinstance(event, TokenEvent):
                    break
            await generation.aclose()
            assert generation.usage is not None
            assert 1 <= generation.usage.completion_tokens < 900
            assert [event async for event in generation] == []
            assert service.stats.full_pages.used == 0
            assert service.stats.num_finished_total["cancelled"] == 1

    run(scenario)


def test_closing_during_a_step_takes_effect_right_after_it() -> None:
    async def scenario() -> None:
        runner = GatedRunner()
        async with serving(runner) as service:
            generation = service.generate(request(prompt_of(100), 900))
            await generation.admitted()
            await asyncio.to_thread(runner.entered.wait)
            closing = asyncio.create_task(generation.aclose())
            await asyncio.sleep(0.01)
            runner.gate.set()
            await closing
            assert len(runner.batches) == 1

    run(scenario)


def test_dropping_the_generation_cancels_it() -> None:
    async def scenario() -> None:
        async with serving(HashRunner()) as service:
            generation = service.generate(request(prompt_of(100), 900))
            await generation.admitted()
            del generation
            gc.collect()
            await until(lambda: service.stats.num_finished_total["cancelled"] == 1)

    run(scenario)


def test_cancelled_task_cancels_its_request() -> None:
    async def scenario() -> None:
        async with serving(HashRunner()) as service:

            async def client() -> None:
                async with contextlib.aclosing(service.generate(request(prompt_of(100), 900))) as generation:
                    await read(generation)

            task = asyncio.create_task(client())
            await until(lambda: service.stats.num_generated_tokens_total > 3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: service.stats.num_finished_total["cancelled"] == 1)

    run(scenario)


def test_thousand_connect_and_drop() -> None:
    async def scenario() -> None:
        async with serving(HashRunner(), max_running=16, max_waiting=1000) as service:

            async def client(number: int) -> None:
                generation = service.generate(request(prompt_of(20 + number % 200, number % 5), 800))
                if number % 4 == 1:
                    await generation.admitted()
                elif number % 4 == 2:
                    await anext(generation)
                elif number % 4 == 3:
                    await asyncio.sleep(number / 10_000)
                if number % 2:
                    await generation.aclose()

            await asyncio.gather(*map(client, range(1000)))
            gc.collect()
            await until(lambda: service.stats.num_finished_total["cancelled"] == 1000)
            await until(lambda: service.stats.full_pages.used == 0)
            tokens, _ = await read(service.generate(request(prompt_of(100, 77), 5)))
            assert tokens == hash_continuation(prompt_of(100, 77), 5)

    run(scenario)


def test_failing_runner_is_an_error_for_who_runs_and_the_service_goes_on() -> None:
    async def scenario() -> None:
        async with serving(FailingRunner([3])) as service:
            generation = service.generate(request(prompt_of(10), 9))
            with pytest.raises(EngineFailed):
                await read(generation)
            assert generation.usage == Usage(10, 0, 0, 3, 0)
            assert service.ready
            assert (await read(service.generate(request(prompt_of(10), 3))))[0] == hash_continuation(prompt_of(10), 3)

    run(scenario)


def test_runner_that_stays_broken_is_not_ready_and_refuses() -> None:
    async def scenario() -> None:
        async with serving(FailingRunner(range(1, 1000))) as service:
            with pytest.raises(EngineFailed):
                await read(service.generate(request(prompt_of(10), 9)))
            await until(lambda: not service.ready)
            with pytest.raises(EngineFailed):
                await service.generate(request(prompt_of(10), 9)).admitted()
            assert not service.stats.ready

    run(scenario)


def test_thread_that_dies_answers_everybody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        engine = Engine(HashRunner(), max_running=1)
        service = EngineService(engine)
        generations = [service.generate(request(prompt_of(10, seed), 900)) for seed in range(5)]
        for generation in generations:
            await generation.admitted()
        monkeypatch.setattr(engine._scheduler, "schedule", None)  # a bug in the engine itself …
        monkeypatch.setattr(engine._scheduler, "remove", None)  # … and one in the way out
        for generation in generations:
            with pytest.raises(EngineFailed, match="stopped after an internal error"):
                await read(generation)
        await until(lambda: not service.ready)
        for _ in range(3):
            with pytest.raises(EngineFailed, match="stopped after an internal error"):
                await service.generate(request(prompt_of(10), 9)).admitted()
        await service.close()

    run(scenario)
    assert "the engine's thread died" in caplog.text


def test_lost_page_stops_the_service_when_it_is_idle() -> None:
    async def scenario() -> None:
        engine = Engine(HashRunner())
        service = EngineService(engine)
        engine._cache.full._free.pop()
        await read(service.generate(request(prompt_of(10), 3)))
        await until(lambda: not service.ready)
        with pytest.raises(EngineFailed):
            await service.generate(request(prompt_of(10), 3)).admitted()

    run(scenario)


def test_close_lets_admitted_requests_end_and_refuses_new_ones() -> None:
    async def scenario() -> None:
        runner = GatedRunner()
        service = EngineService(Engine(runner, max_running=1))
        admitted = [service.generate(request(prompt_of(10, seed), 5)) for seed in range(3)]
        reading = [asyncio.create_task(read(generation)) for generation in admitted]
        closing = asyncio.create_task(service.close(drain_timeout_s=20))
        await asyncio.sleep(0)
        late = service.generate(request(prompt_of(10), 5))
        runner.gate.set()
        with pytest.raises(ShuttingDown):
            await late.admitted()
        await closing
        for seed, (tokens, _) in enumerate(await asyncio.gather(*reading)):
            assert tokens == hash_continuation(prompt_of(10, seed), 5)
        assert not service.ready
        with pytest.raises(ShuttingDown):
            await service.generate(request(prompt_of(10), 5)).admitted()
        await service.close()  # twice does no harm

    run(scenario)


def test_close_fails_what_takes_longer_than_the_drain() -> None:
    async def scenario() -> None:
        service = EngineService(Engine(HashRunner()))
        generation = service.generate(request(prompt_of(10), 1000))
        await anext(generation)
        await service.close(drain_timeout_s=0)
        with pytest.raises(ShuttingDown):
            await read(generation)
        assert generation.usage is not None
        assert 1 <= generation.usage.completion_tokens < 1000

    run(scenario)


def test_client_whose_loop_is_closed_is_cancelled() -> None:
    runner = GatedRunner()
    service = EngineService(Engine(runner))
    kept: list[Generation] = []

    async def gone() -> None:
        kept.append(service.generate(request(prompt_of(100), 900)))
        await kept[0].admitted()

    run(gone)
    runner.gate.set()
    deadline = time.monotonic() + 20
    while service.stats.num_finished_total["cancelled"] == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert service.stats.num_finished_total["cancelled"] == 1
    assert service.stats.full_pages.used == 0

    async def next_one() -> None:
        assert (await read(service.generate(request(prompt_of(9), 3))))[0] == hash_continuation(prompt_of(9), 3)
        await service.close()

    run(next_one)


def test_idle_service_takes_no_time() -> None:
    async def scenario() -> None:
        async with serving(HashRunner()) as service:
            await read(service.generate(request(prompt_of(9), 3)))
            clock = time.pthread_getcpuclockid(service._thread.ident or 0)
            steps, before_s = service.stats.num_steps_total, time.clock_gettime(clock)
            await asyncio.sleep(0.3)
            assert service.stats.num_steps_total == steps
            assert time.clock_gettime(clock) - before_s < 0.05

    run(scenario)


def test_context_length_is_that_of_the_engine() -> None:
    async def scenario() -> None:
        async with serving(HashRunner(num_full_pages=5)) as service:
            assert service.context_length == 320

    run(scenario)
