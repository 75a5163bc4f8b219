"""Running streams keep their pace while prompts are computed: on a machine whose time we say."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from musespark.engine.chunk_size import ChunkSize
from musespark.engine.engine import Engine
from musespark.engine.runner import Batch, Float32
from tests.engine.driver import Driver, prompt_of, request
from tests.fakes import HashRunner


class TimedRunner(HashRunner):
    """Takes `time_of(number of tokens)` for a step, on a clock of its own."""

    def __init__(self, time_of: Callable[[int], float], **options: int) -> None:
        super().__init__(num_full_pages=200, num_sliding_pages=200, **options)
        self.time_of = time_of
        self.now = 0.0

    def forward(self, batch: Batch) -> Float32:
        self.now += self.time_of(len(batch.token_ids))
        return super().forward(batch)


def run_stream_beside_prompts(runner: TimedRunner, target_s: float) -> tuple[list[float], int]:
    """Times of the steps while one stream decodes beside prompts of 900 tokens, and how many tokens of these a step."""
    engine = Engine(runner, max_batch_tokens=256, decode_latency_target_s=target_s, clock=lambda: runner.now)
    driver = Driver(engine)
    stream = driver.submit(request(prompt_of(10), 900))
    driver.step()
    for seed in range(1, 5):
        driver.submit(request(prompt_of(900, seed), 1))
    times, at = [], len(runner.batches)
    while engine.stats().running + engine.stats().waiting > 1:
        before = runner.now
        driver.step()
        times.append(runner.now - before)
    assert not stream.ended
    return times, sum(len(batch.token_ids) for batch in runner.batches[at:]) // len(times)


def test_stream_has_its_tokens_in_time_after_a_few_steps() -> None:
    times, mean_tokens = run_stream_beside_prompts(TimedRunner(lambda n: 0.01 + 0.001 * n), target_s=0.1)
    assert max(times[4:]) < 0.115
    assert mean_tokens > 60  # of the 90 that fit exactly


def test_first_steps_know_from_earlier_prompts_what_fits() -> None:
    runner = TimedRunner(lambda n: 0.01 + 0.001 * n)
    engine = Engine(runner, max_batch_tokens=256, decode_latency_target_s=0.1, clock=lambda: runner.now)
    driver = Driver(engine)
    driver.submit(request(prompt_of(600, 1), 100))
    while not any(len(batch.logit_rows) for batch in runner.batches):
        driver.step()
    driver.submit(request(prompt_of(600, 2), 1))
    before = runner.now
    driver.step()
    assert runner.now - before < 0.115


def test_fast_machine_computes_whole_chunks() -> None:
    _, mean_tokens = run_stream_beside_prompts(TimedRunner(lambda n: 1e-4 * n), target_s=0.1)
    assert mean_tokens > 220  # of 256; the last chunk of each prompt is a rest


def test_prompt_gets_on_where_decoding_alone_takes_longer_than_the_target() -> None:
    times, mean_tokens = run_stream_beside_prompts(TimedRunner(lambda n: 0.2 + 0.002 * n), target_s=0.1)
    assert max(times[4:]) < 0.46  # twice the time of decoding alone, and not much more
    assert mean_tokens >= 16


def test_size_follows_a_machine_that_becomes_slow_and_fast_again() -> None:
    size = ChunkSize(512, target_s=0.1)

    def steps(per_token_s: float, count: int) -> int:
        for _ in range(count):
            size.measured(0.005 + per_token_s * size.num_tokens, 3, size.num_tokens)
        return size.num_tokens

    assert steps(1e-4, 20) == 512
    assert 80 <= steps(1e-3, 20) <= 96
    assert 16 <= steps(1e-2, 20) <= 17
    assert 80 <= steps(1e-3, 20) <= 96
    assert steps(1e-4, 20) == 512


def test_one_slow_step_is_soon_forgotten() -> None:
    size = ChunkSize(512, target_s=0.1)
    for _ in range(5):
        size.measured(0.05, 1, 512)
    size.measured(3.0, 1, 512)
    assert size.num_tokens == 128
    for _ in itertools.repeat(None, 8):
        size.measured(1e-4 * size.num_tokens, 1, size.num_tokens)
    assert size.num_tokens == 512


@pytest.mark.parametrize("most", [1, 8, 16, 512])
def test_size_is_never_zero_and_never_above_the_most(most: int) -> None:
    size = ChunkSize(most, target_s=0.1)
    for seconds in (10.0, 10.0, 10.0, 0.0, 1e-9):
        size.measured(seconds, 1, size.num_tokens)
        assert 1 <= size.num_tokens <= most
