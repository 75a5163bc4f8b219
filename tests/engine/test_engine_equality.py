"""Greedy output is one thing: alone, in a batch, chunked, cached, preempted, by any runner, and by the naive loop."""

from __future__ import annotations

import pytest

from musespark.engine.engine import Engine
from tests.engine.driver import Driver, no_pages_in_use, prompt_of, request, run_alone
from tests.fakes import HashRunner, chunked_config, hash_continuation, toy_config

LENGTHS = [1, 2, 63, 64, 65, 127, 128, 129, 130, 191, 192, 193, 256, 300, 5, 77]


def test_batch_of_16_equals_the_naive_loop() -> None:
    driver = Driver(Engine(HashRunner(num_full_pages=128, num_sliding_pages=128)))
    seen = [driver.submit(request(prompt_of(length, length), 20)) for length in LENGTHS]
    driver.run()
    for length, one in zip(LENGTHS, seen, strict=True):
        assert one.ids() == hash_continuation(prompt_of(length, length), 20), length


@pytest.mark.parametrize("max_batch_tokens", [1, 3, 64, 100, 512])
def test_chunked_equals_the_naive_loop(max_batch_tokens: int) -> None:
    engine = Engine(HashRunner(), max_batch_tokens=max_batch_tokens, max_running=1)
    assert run_alone(engine, request(prompt_of(300), 5)).ids() == hash_continuation(prompt_of(300), 5)


@pytest.mark.parametrize("length", LENGTHS)
def test_cached_equals_cold(length: int) -> None:
    engine = Engine(HashRunner())
    cold = run_alone(engine, request(prompt_of(length), 70))
    warm = run_alone(engine, request(prompt_of(length), 70))
    assert cold.ids() == warm.ids() == hash_continuation(prompt_of(length), 70)
    assert cold.usage is not None
    assert warm.usage is not None
    assert cold.usage.cached_tokens == 0
    assert warm.usage.cached_tokens == (length - 1) // 64 * 64


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 66, 128, 1000])
def test_any_window_equals_the_naive_loop_cold_and_cached(window: int) -> None:
    config = toy_config(sliding_window=window)
    engine = Engine(HashRunner(config=config), max_batch_tokens=50)
    for cached in (0, 192):
        seen = run_alone(engine, request(prompt_of(200), 70))
        assert seen.ids() == hash_continuation(prompt_of(200), 70, config=config)
        assert seen.usage is not None
        assert seen.usage.cached_tokens == cached


@pytest.mark.parametrize("chunk", [1, 2, 63, 64, 65, 66, 100, 128, 199, 200, 201, 1000])
def test_any_chunk_equals_the_naive_loop_cold_and_cached(chunk: int) -> None:
    config = chunked_config(chunk)
    engine = Engine(HashRunner(config=config), max_batch_tokens=50)
    for cached in (0, 192):
        seen = run_alone(engine, request(prompt_of(200), 70))
        assert seen.ids() == hash_continuation(prompt_of(200), 70, config=config)
        assert seen.usage is not None
        assert seen.usage.cached_tokens == cached
    assert no_pages_in_use(engine)


@pytest.mark.parametrize("chunk", [64, 100, 128])
def test_chunked_preempted_in_a_batch_equals_the_naive_loop(chunk: int) -> None:
    config = chunked_config(chunk)
    engine = Engine(HashRunner(num_full_pages=9, num_sliding_pages=6, config=config), max_batch_tokens=64)
    driver = Driver(engine)
    seen = [driver.submit(request(prompt_of(60 + seed, seed), 200)) for seed in range(6)]
    driver.run()
    for seed, one in enumerate(seen):
        assert one.ids() == hash_continuation(prompt_of(60 + seed, seed), 200, config=config)
    assert engine.stats().num_preemptions_total > 0
    assert no_pages_in_use(engine)


def test_a_sequence_of_many_chunks_needs_the_pages_of_one() -> None:
    """Chunks of 100 take 3 pages where they begin late in one: as many are there, and a prompt goes through them."""
    config = chunked_config(100)
    engine = Engine(HashRunner(num_sliding_pages=3, config=config))
    assert engine.context_length == 1024
    assert run_alone(engine, request(prompt_of(900), 20)).ids() == hash_continuation(prompt_of(900), 20, config=config)
    two = Engine(HashRunner(num_sliding_pages=2, config=config))
    assert two.context_length == 192  # the chunk from 100 to 199 goes on into page 3 there, its third
    assert run_alone(two, request(prompt_of(180), 12)).ids() == hash_continuation(prompt_of(180), 12, config=config)


def test_decoding_goes_on_beside_a_long_prompt() -> None:
    driver = Driver(Engine(HashRunner(), max_batch_tokens=32, max_running=4))
    short = driver.submit(request(prompt_of(8, 1), 40))
    driver.step()
    long = driver.submit(request(prompt_of(600, 2), 5))
    for expected in range(2, 20):
        driver.step()
        assert len(short.ids()) == expected
        assert not long.ids()
    driver.run()
    assert long.ids() == hash_continuation(prompt_of(600, 2), 5)
    assert short.ids() == hash_continuation(prompt_of(8, 1), 40)


@pytest.mark.parametrize(("num_full_pages", "num_sliding_pages"), [(6, 64), (64, 5), (6, 5), (9, 7)])
def test_preempted_equals_the_naive_loop(num_full_pages: int, num_sliding_pages: int) -> None:
    engine = Engine(HashRunner(num_full_pages=num_full_pages, num_sliding_pages=num_sliding_pages), max_batch_tokens=64)
    driver = Driver(engine)
    seen = [driver.submit(request(prompt_of(60 + seed, seed), 200)) for seed in range(6)]
    driver.run()
    for seed, one in enumerate(seen):
        assert one.ids() == hash_continuation(prompt_of(60 + seed, seed), 200)
        assert one.usage is not None
        assert one.usage.completion_tokens == 200
    assert engine.stats().num_preemptions_total > 0
    assert no_pages_in_use(engine)


def test_preempted_sampling_goes_on_with_its_own_random_numbers() -> None:
    asked = [(prompt_of(60, seed), {"temperature": 0.8, "seed": seed, "frequency_penalty": 0.5}) for seed in range(5)]
    alone = [run_alone(Engine(HashRunner()), request(prompt, 150, **fields)).ids() for prompt, fields in asked]
    driver = Driver(Engine(HashRunner(num_full_pages=6, num_sliding_pages=6), max_batch_tokens=64))
    seen = [driver.submit(request(prompt, 150, **fields)) for prompt, fields in asked]
    driver.run()
    assert driver.engine.stats().num_preemptions_total > 0
    assert [one.ids() for one in seen] == alone


def test_the_oldest_is_never_preempted() -> None:
    driver = Driver(Engine(HashRunner(num_full_pages=6, num_sliding_pages=6), max_batch_tokens=64))
    oldest = driver.submit(request(prompt_of(60, 9), 250))
    for seed in range(5):
        driver.submit(request(prompt_of(60, seed), 100))
    for expected in range(1, 251):
        driver.step()
        assert len(oldest.ids()) == expected
