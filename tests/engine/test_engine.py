"""What one client sees: tokens, ends, usage, refusals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from musespark.engine.engine import Engine
from musespark.engine.request import Timing, Usage, UsageEvent
from musespark.engine.runner import Batch, Float32
from musespark.errors import ConfigError, ContextTooLong, InvalidRequest, Overloaded
from tests.engine.driver import Driver, no_pages_in_use, picture, prompt_of, request, run_alone
from tests.fakes import HashRunner, ScriptedRunner, hash_continuation, toy_config


def test_greedy_output_is_the_naive_continuation() -> None:
    seen = run_alone(Engine(HashRunner()), request(prompt_of(200), max_tokens=70))
    assert seen.ids() == hash_continuation(prompt_of(200), 70)
    assert seen.reasons == {0: "length"}
    assert seen.usage == Usage(200, 0, 0, 70, 0)


@pytest.mark.parametrize("max_tokens", [1, 2, 63, 64, 65])
def test_length_ends_exactly_at_max_tokens(max_tokens: int) -> None:
    seen = run_alone(Engine(HashRunner()), request(prompt_of(5), max_tokens=max_tokens))
    assert len(seen.ids()) == max_tokens
    assert seen.reasons == {0: "length"}


def test_stop_token_ends_unseen_and_is_counted() -> None:
    engine = Engine(ScriptedRunner(lambda position: {9: 50, 10: 51, 11: 6}[position]))
    seen = run_alone(engine, request(prompt_of(10), stop_token_ids=frozenset({1, 6})))
    assert seen.ids() == [50, 51]
    assert seen.reasons == {0: "stop"}
    assert seen.usage is not None
    assert seen.usage.completion_tokens == 3


def test_stop_token_as_the_last_allowed_token_is_a_stop() -> None:
    engine = Engine(ScriptedRunner(lambda position: 6))
    assert run_alone(engine, request(prompt_of(10), 1, stop_token_ids=frozenset({6}))).reasons == {0: "stop"}


def test_ignore_eos_goes_on_and_shows_the_stop_token() -> None:
    engine = Engine(ScriptedRunner(lambda position: 6))
    seen = run_alone(engine, request(prompt_of(10), 3, stop_token_ids=frozenset({6}), ignore_eos=True))
    assert seen.ids() == [6, 6, 6]
    assert seen.reasons == {0: "length"}


def test_suppressed_tokens_are_never_sampled_whatever_the_bias() -> None:
    engine = Engine(ScriptedRunner(lambda position: 12), suppressed_token_ids={12})
    seen = run_alone(engine, request(prompt_of(10), 20, temperature=1.0, logit_bias={12: 100.0}))
    assert 12 not in seen.ids()


def test_image_rows_are_suppressed_without_asking() -> None:
    image_token = toy_config().image_token_id
    seen = run_alone(Engine(ScriptedRunner(lambda position: image_token)), request(prompt_of(10), 20))
    assert image_token not in seen.ids()


@pytest.mark.parametrize(
    ("prompt", "why"),
    [([320], "vocabulary of 320"), ([-1], "vocabulary of 320"), ([40, 10, 41], "1 image rows, 0 of them")],
)
def test_prompt_that_the_model_cannot_read_is_refused(prompt: list[int], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        Engine(HashRunner()).submit(request(prompt))


def test_image_without_its_rows_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="0 image rows"):
        Engine(HashRunner()).submit(request(prompt_of(8), images=(picture(3),), image_spans=((2, 5),)))


def test_image_rows_elsewhere_than_its_image_are_refused() -> None:
    prompt = [*prompt_of(5), 10, 10, 10]
    with pytest.raises(InvalidRequest, match="3 image rows, 0 of them where"):
        Engine(HashRunner()).submit(request(prompt, images=(picture(3),), image_spans=((2, 5),)))


def test_bias_outside_the_vocabulary_is_refused() -> None:
    engine = Engine(HashRunner())
    engine.submit(request(prompt_of(4), logit_bias={319: 1.0}))
    with pytest.raises(InvalidRequest, match="ids end at 319"):
        engine.submit(request(prompt_of(4), logit_bias={320: 1.0}))


def test_request_id_in_use_is_refused_and_free_again_afterwards() -> None:
    driver = Driver(Engine(HashRunner()))
    driver.submit(request(prompt_of(4), id="x"))
    with pytest.raises(InvalidRequest, match="running already"):
        driver.submit(request(prompt_of(4), id="x"))
    driver.run()
    driver.engine.submit(request(prompt_of(4), id="x"))


def test_context_limit_of_the_model_counts_prompt_and_completion() -> None:
    engine = Engine(HashRunner())
    assert engine.context_length == 1024
    assert len(run_alone(engine, request(prompt_of(1000), 24)).ids()) == 24
    with pytest.raises(ContextTooLong, match=r"has 1,001 tokens and up to 24 are asked for, together 1,025; .* 1,024"):
        engine.submit(request(prompt_of(1001), 24))


def test_a_prompt_that_is_too_long_is_refused_by_its_length_alone() -> None:
    """Everybody's next token would wait while millions of ids are looked at."""

    class Unread(tuple[int, ...]):
        def __iter__(self) -> Iterator[int]:
            raise AssertionError("nobody should look at them")

    long = request(prompt_of(1100))
    object.__setattr__(long, "prompt", Unread(long.prompt))
    with pytest.raises(ContextTooLong):
        Engine(HashRunner()).submit(long)


def test_context_limit_of_the_full_pages() -> None:
    engine = Engine(HashRunner(num_full_pages=4))
    assert len(run_alone(engine, request(prompt_of(250), 6)).ids()) == 6
    with pytest.raises(ContextTooLong, match=r"model takes 1,024, its memory for contexts 256"):
        engine.submit(request(prompt_of(250), 7))


def test_context_limit_of_too_few_sliding_pages() -> None:
    # A window of 128 needs 3 pages at a page's first token: its own and the two before it.
    assert Engine(HashRunner(num_sliding_pages=3)).context_length == 1024
    engine = Engine(HashRunner(num_sliding_pages=2))
    assert engine.context_length == 128
    assert run_alone(engine, request(prompt_of(100), 28)).ids() == hash_continuation(prompt_of(100), 28)


def test_queue_bound_on_both_sides() -> None:
    driver = Driver(Engine(HashRunner(), max_running=2, max_waiting=3))
    accepted = [driver.submit(request(prompt_of(10, seed))) for seed in range(5)]
    with pytest.raises(Overloaded) as refusal:
        driver.submit(request(prompt_of(10)))
    assert 100 <= refusal.value.retry_after_ms <= 60_000
    driver.step()
    with pytest.raises(Overloaded):
        driver.submit(request(prompt_of(10)))
    driver.run()
    assert all(seen.reasons == {0: "length"} for seen in accepted)
    assert driver.engine.stats().num_overloaded_total == 2


def test_retry_hint_follows_the_pace() -> None:
    hints = []
    for seconds_per_step in (0.01, 1.0):
        clock = iter(np.arange(0, 10_000, seconds_per_step))
        driver = Driver(Engine(HashRunner(), max_running=1, max_waiting=8, clock=lambda c=clock: float(next(c))))
        for seed in range(60):
            driver.submit(request(prompt_of(4, seed), 1))
            if seed >= 8:
                driver.step()
        driver.submit(request(prompt_of(4), 1))
        with pytest.raises(Overloaded) as refusal:
            driver.submit(request(prompt_of(4)))
        hints.append(refusal.value.retry_after_ms)
    assert hints[0] < hints[1] / 20


def test_more_running_than_tokens_in_a_step_is_a_setup_error() -> None:
    Engine(HashRunner(), max_batch_tokens=4, max_running=4)
    with pytest.raises(ConfigError, match="max_running is 5"):
        Engine(HashRunner(), max_batch_tokens=4, max_running=5)


def test_n_choices_share_the_prompt_and_differ() -> None:
    engine = Engine(HashRunner())
    seen = run_alone(engine, request(prompt_of(200), 12, n=3, temperature=1.0, seed=5))
    assert seen.reasons == {0: "length", 1: "length", 2: "length"}
    assert len({tuple(seen.ids(index)) for index in range(3)}) == 3
    assert seen.usage == Usage(200, 0, 0, 36, 0)
    # 200 for the first, then 200 - 192 = 8 for each of the two others, and 11 more for every choice.
    runner = engine._runner
    assert isinstance(runner, HashRunner)
    assert sum(len(batch.token_ids) for batch in runner.batches) == 200 + 8 + 8 + 3 * 11


def test_greedy_choices_are_equal() -> None:
    seen = run_alone(Engine(HashRunner()), request(prompt_of(100), 12, n=16))
    assert {tuple(seen.ids(index)) for index in range(16)} == {tuple(hash_continuation(prompt_of(100), 12))}


def test_seed_repeats_whatever_the_neighbours() -> None:
    asked = {"temperature": 1.0, "top_p": 0.9, "seed": -7}
    alone = run_alone(Engine(HashRunner()), request(prompt_of(50), 30, **asked)).ids()
    driver = Driver(Engine(HashRunner(), max_batch_tokens=40))
    for seed in range(1, 8):
        driver.submit(request(prompt_of(90, seed), 20, temperature=1.0, seed=seed))
    beside = driver.submit(request(prompt_of(50), 30, **asked))
    driver.run()
    assert beside.ids() == alone
    assert run_alone(Engine(HashRunner()), request(prompt_of(50), 30, **asked | {"seed": -6})).ids() != alone


def test_without_a_seed_two_runs_differ() -> None:
    runs = [run_alone(Engine(HashRunner()), request(prompt_of(50), 30, temperature=1.0)).ids() for _ in range(2)]
    assert runs[0] != runs[1]


def test_priority_goes_first_among_those_that_wait() -> None:
    driver = Driver(Engine(HashRunner(), max_running=1))
    late = driver.submit(request(prompt_of(10, 1), 2, priority=1))
    soon = driver.submit(request(prompt_of(10, 2), 2, priority=0))
    while not late.ended:
        driver.step()
        assert soon.ended or not late.ids()


def test_stats_count_what_happened() -> None:
    driver = Driver(Engine(HashRunner()))
    driver.submit(request(prompt_of(130), 5))
    driver.run()
    driver.submit(request(prompt_of(130), 5))
    driver.run()
    stats = driver.engine.stats()
    assert (stats.num_prompt_tokens_total, stats.num_cached_tokens_total) == (260, 128)
    assert stats.num_generated_tokens_total == 10
    assert stats.num_finished_total == {"stop": 0, "length": 2, "budget": 0, "cancelled": 0}
    assert stats.full_pages.total == 64
    assert no_pages_in_use(driver.engine)


class SteadyRunner(HashRunner):
    """The same logits after every token: 3 for 77, 2 for 78, 0.5 for 79."""

    def forward(self, batch: Batch) -> Float32:
        logits = np.zeros_like(super().forward(batch))
        logits[:, 77:80] = (3.0, 2.0, 0.5)
        return logits


def test_penalties_follow_what_was_generated() -> None:
    frequent = run_alone(Engine(SteadyRunner()), request(prompt_of(5), 6, frequency_penalty=1.5))
    # 77 falls to 1.5, 78 to 0.5, 77 to 0.0; 78 and 79 are equal and the lower id wins; 79; of those at 0.0 the lowest.
    assert frequent.ids() == [77, 78, 77, 78, 79, 0]
    present = run_alone(Engine(SteadyRunner()), request(prompt_of(5), 4, presence_penalty=2.0))
    assert present.ids() == [77, 78, 77, 77]


def test_timing_says_where_the_time_of_a_request_went() -> None:
    now = 100.0

    class SlowRunner(HashRunner):
        def forward(self, batch: Batch) -> Float32:
            nonlocal now
            now += 1.0 if len(batch.token_ids) > 2 else 0.25
            return super().forward(batch)

    engine = Engine(SlowRunner(), max_running=1, max_batch_tokens=64, clock=lambda: now)
    engine.submit(request(prompt_of(64), 3, id="first"))
    engine.submit(request(prompt_of(100, 1), 5, id="second"))
    timings = {}
    while engine.has_work:
        timings |= {event.request_id: event.timing for event in engine.step() if isinstance(event, UsageEvent)}
    assert timings["first"] == Timing(queue_s=0.0, prompt_s=1.0, completion_s=0.5)
    assert timings["second"] == Timing(queue_s=1.5, prompt_s=2.0, completion_s=1.0)


def test_timing_of_what_was_cancelled_early_says_how_far_it_came() -> None:
    engine = Engine(HashRunner(), max_batch_tokens=64, max_running=1, clock=lambda: 5.0)
    engine.submit(request(prompt_of(100), 3, id="begun"))
    engine.submit(request(prompt_of(100), 3, id="waits"))
    engine.step()
    ends = [event for name in ("begun", "waits") for event in engine.cancel(name) if isinstance(event, UsageEvent)]
    assert [event.timing for event in ends] == [Timing(0.0, None, None), Timing(None, None, None)]
