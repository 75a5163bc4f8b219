"""Guessing tokens changes the number of steps and nothing else."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from musespark.engine.allowance import Allowance
from musespark.engine.engine import Engine
from musespark.engine.runner import Batch, Float32
from musespark.engine.speculation import FIRST_PAUSE, MOST_NGRAMS, Drafting, NgramDrafter
from tests.engine.drafters import Guessing
from tests.engine.driver import Driver, Seen, no_pages_in_use, prompt_of, request, run_alone
from tests.fakes import HashRunner, ScriptedRunner, hash_continuation


def ticking(seconds: float = 1.0) -> Callable[[], float]:
    """A clock on which every step takes the same time, so that any right guess pays."""
    times = itertools.count()
    return lambda: next(times) * seconds


def engine_of(guesses: Callable[[], Any] = NgramDrafter, most: int = 8, **options: Any) -> Engine:
    runner = options.pop("runner", None) or HashRunner()
    return Engine(runner, max_draft_tokens=most, make_drafter=guesses, clock=ticking(), **options)


def always(tokens: Sequence[int]) -> Callable[[], Any]:
    """A drafter that says the same every time, right or wrong."""

    class Stubborn:
        def propose(self, new: Sequence[int], most: int) -> Sequence[int]:
            return tokens[:most]

    return Stubborn


@pytest.mark.parametrize("spoiled", [0.0, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("length", [1, 60, 64, 127, 200])
def test_greedy_output_is_that_of_the_naive_loop(length: int, spoiled: float) -> None:
    """Guesses right and wrong, over the borders of pages and of the window."""
    prompt = prompt_of(length)
    expected = hash_continuation(prompt, 150)
    engine = engine_of(lambda: Guessing([*prompt, *expected], spoiled))
    for _ in range(2):  # cold, then with a cached prefix that partly was computed by drafts
        assert run_alone(engine, request(prompt, 150)).ids() == expected
    stats = engine.stats()
    assert stats.num_generated_tokens_total == 300
    assert (stats.num_accepted_tokens_total > 0) == (spoiled < 1.0)
    assert stats.num_drafted_tokens_total >= stats.num_accepted_tokens_total
    assert no_pages_in_use(engine)


def test_right_guesses_save_steps() -> None:
    prompt = prompt_of(20)
    expected = hash_continuation(prompt, 200)
    engine = engine_of(lambda: Guessing([*prompt, *expected]))
    assert run_alone(engine, request(prompt, 200)).ids() == expected
    # Nine tokens a step but for the first ones and one plain step in 64.
    assert engine.stats().num_steps_total < 200 / 9 + 8


def test_a_seed_gives_the_same_tokens_with_everything_that_sampling_knows() -> None:
    params: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.8, "top_k": 50, "min_p": 0.01},
        {"temperature": 1.5, "frequency_penalty": 0.7, "presence_penalty": 0.3, "repetition_penalty": 1.3},
        {"temperature": 0.0, "repetition_penalty": 1.5, "logit_bias": {40: 3.0}},
        {"temperature": 1.0, "logprobs": 3},
    ]
    for number, fields in enumerate(params):
        new = {"seed": number, **fields}
        plain = run_alone(Engine(HashRunner()), request(prompt_of(30), 80, **new))
        right = [*prompt_of(30), *plain.ids()]
        engine = engine_of(lambda right=right: Guessing(right, 0.3))
        assert run_alone(engine, request(prompt_of(30), 80, **new)).tokens == plain.tokens, fields
        assert engine.stats().num_accepted_tokens_total > 10


def chi_square(counts: Counter[int], probabilities: np.ndarray, total: int) -> tuple[float, int]:
    """Pearson's statistic over the tokens expected at least five times, the others together; its degrees of freedom."""
    expected = probabilities * total
    often = np.flatnonzero(expected >= 5)
    rest = total - expected[often].sum()
    statistic = sum((counts[int(token)] - expected[token]) ** 2 / expected[token] for token in often)
    others = total - sum(counts[int(token)] for token in often)
    if rest >= 5:
        statistic += (others - rest) ** 2 / rest
    return float(statistic), len(often) - (rest < 5)


class TwelveTokens(HashRunner):
    """Only the tokens 32 to 43 can come; which of them, depends on all that was said before."""

    def forward(self, batch: Batch) -> Float32:
        logits = super().forward(batch)
        logits[:, :32] = logits[:, 44:] = -1e4
        return logits


def test_the_sampled_distribution_is_that_of_the_model_behind_right_and_wrong_guesses() -> None:
    """1,500 draws of three tokens, of which the second is guessed: against the exact softmax, worked out token by token
    without guesses, the second token must be as often right, and the third, behind a right guess, distributed alike."""
    prompt, total = prompt_of(5), 1500
    alone = Engine(TwelveTokens())
    first = law_after(alone, prompt)
    second = np.sum([first[x] * law_after(alone, [*prompt, x]) for x in range(32, 44)], axis=0)
    guess = int(second.argmax())
    thirds = [
        first[x] * law_after(alone, [*prompt, x])[guess] * law_after(alone, [*prompt, x, guess]) for x in range(32, 44)
    ]
    third = np.sum(thirds, axis=0) / second[guess]

    engine = engine_of(always([guess]), runner=TwelveTokens())
    run_alone(engine, request(prompt, 8, temperature=1.0))  # so that the time of a plain step is known
    before = engine.stats()
    draws = [run_alone(engine, request(prompt, 3, temperature=1.0, seed=seed)).ids() for seed in range(total)]
    after = engine.stats()
    assert after.num_drafted_tokens_total - before.num_drafted_tokens_total == total
    right = [ids for ids in draws if ids[1] == guess]
    assert after.num_accepted_tokens_total - before.num_accepted_tokens_total == len(right)
    for counts, law in [(Counter(ids[1] for ids in draws), second), (Counter(ids[2] for ids in right), third)]:
        statistic, freedom = chi_square(counts, law, sum(counts.values()))
        assert freedom >= 5
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations


def law_after(engine: Engine, tokens: Sequence[int]) -> np.ndarray:
    """The exact probabilities of the token after these, from its log-probabilities."""
    seen = run_alone(engine, request(list(tokens), 1, logprobs=20))
    law = np.zeros(320)
    for token, logprob in seen.tokens[0][0].top:
        law[token] = np.exp(logprob)
    return law


@pytest.mark.parametrize("stop_at", [0, 1, 5, 6, 17])
def test_a_stop_token_within_a_draft_ends_the_answer_there(stop_at: int) -> None:
    prompt = prompt_of(20)
    expected = hash_continuation(prompt, 40)
    stop = expected[stop_at]
    seen = run_alone(
        engine_of(lambda: Guessing([*prompt, *expected])), request(prompt, 40, stop_token_ids=frozenset({stop}))
    )
    assert seen.reasons == {0: "stop"}
    assert seen.usage is not None
    assert seen.usage.completion_tokens == expected.index(stop) + 1
    assert seen.ids() == expected[: expected.index(stop)]


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 9, 10, 11])
def test_never_more_tokens_than_asked_for(max_tokens: int) -> None:
    prompt = prompt_of(20)
    expected = hash_continuation(prompt, 40)
    engine = engine_of(lambda: Guessing([*prompt, *expected]))
    run_alone(engine, request(prompt, 5))
    seen = run_alone(engine, request(prompt, max_tokens))
    assert seen.ids() == expected[:max_tokens]
    assert seen.reasons == {0: "length"}


@pytest.mark.parametrize("granted", [1, 2, 7, 20])
def test_an_allowance_is_used_up_to_the_token_and_not_beyond(granted: int) -> None:
    prompt = prompt_of(20)
    expected = hash_continuation(prompt, 40)
    engine = engine_of(lambda: Guessing([*prompt, *expected]))
    run_alone(engine, request(prompt, 5))
    seen = run_alone(engine, request(prompt, 40, allowance=Allowance(granted, final=True)))
    assert seen.ids() == expected[:granted]
    assert seen.reasons == {0: "budget"}


class Clairvoyant:
    """Works out how it goes on; every third guess is spoiled in the middle."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.calls = 0

    def propose(self, new: Sequence[int], most: int) -> Sequence[int]:
        self.tokens += new
        self.calls += 1
        guess = hash_continuation(self.tokens, most)
        if self.calls % 3 == 0:
            guess[len(guess) // 2] ^= 1
        return guess


def test_random_joins_and_aborts_in_little_memory_end_with_every_page_free() -> None:
    """Streams that are guessed at while they are alone, joined, preempted, cancelled, and alone again."""
    random = np.random.default_rng(7)
    driver = Driver(engine_of(Clairvoyant, most=5, runner=HashRunner(num_full_pages=5, num_sliding_pages=5)))
    asked: list[tuple[list[int], int, Seen, str]] = []
    for step in range(400):
        if step % 25 == 0:
            prompt, num_tokens = prompt_of(int(random.integers(1, 120)), step), int(random.integers(1, 60))
            new = request(prompt, num_tokens)
            asked.append((prompt, num_tokens, driver.submit(new), new.id))
        if random.random() < 0.01:
            driver.cancel(asked[-1][3])
        driver.step()
    driver.run()
    for prompt, num_tokens, seen, _ in asked:
        expected = hash_continuation(prompt, num_tokens)
        assert seen.ids() == (expected if seen.reasons == {0: "length"} else expected[: len(seen.ids())])
    stats = driver.engine.stats()
    assert 50 < stats.num_accepted_tokens_total < stats.num_drafted_tokens_total
    assert stats.num_finished_total["cancelled"] > 0
    assert no_pages_in_use(driver.engine)


def test_two_streams_are_not_guessed_at() -> None:
    driver = Driver(engine_of(always([50, 51])))
    seen = [driver.submit(request(prompt_of(20, seed), 30)) for seed in range(2)]
    driver.run()
    assert [one.ids() for one in seen] == [hash_continuation(prompt_of(20, seed), 30) for seed in range(2)]
    assert driver.engine.stats().num_drafted_tokens_total == 0


def test_a_draft_takes_no_page_from_anybody() -> None:
    """Three pages for 192 tokens in all: at the last ones there is room for fewer guesses, then for none."""
    prompt = prompt_of(100)
    expected = hash_continuation(prompt, 92)
    engine = engine_of(lambda: Guessing([*prompt, *expected, *expected]), most=16, runner=HashRunner(num_full_pages=3))
    assert run_alone(engine, request(prompt, 92)).ids() == expected
    assert no_pages_in_use(engine)


@pytest.mark.parametrize("guess", [[-1], [320], [10], [50, 10, 51]])
def test_what_can_not_be_sampled_is_no_guess(guess: list[int]) -> None:
    """10 is the image token; a drafter may also know a larger vocabulary."""
    engine = engine_of(always(guess))
    assert run_alone(engine, request(prompt_of(20), 30)).ids() == hash_continuation(prompt_of(20), 30)


class WrongAt(HashRunner):
    """Computes no numbers for the token at a position."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position

    def forward(self, batch: Batch) -> Float32:
        logits = super().forward(batch)
        logits[batch.positions[batch.logit_rows] == self.position] = np.nan
        return logits


def test_numbers_that_are_none_end_the_request_only_if_the_row_is_used() -> None:
    prompt = prompt_of(20)
    expected = hash_continuation(prompt, 60)
    engine = engine_of(lambda: Guessing([*prompt, *expected]), runner=WrongAt(40))
    seen: Seen = run_alone(engine, request(prompt, 60))
    assert seen.error is not None
    assert seen.ids() == expected[:21]
    assert no_pages_in_use(engine)
    # A wrong guess before it: what stands at position 40 in the row of the guess is not looked at.
    wrong = engine_of(always([50] * 8), runner=WrongAt(26))
    assert run_alone(wrong, request(prompt, 6)).ids() == expected[:6]


def test_a_runner_that_raises_in_a_draft_is_recovered_from() -> None:
    class FailsOnDrafts(HashRunner):
        def forward(self, batch: Batch) -> Float32:
            if len(batch.token_ids) == 9:
                raise RuntimeError("scripted")
            return super().forward(batch)

    prompt = prompt_of(20)
    expected = hash_continuation(prompt, 60)
    driver = Driver(engine_of(lambda: Guessing([*prompt, *expected]), runner=FailsOnDrafts()))
    seen = driver.submit(request(prompt, 60))
    driver.run()
    assert seen.error is not None
    assert no_pages_in_use(driver.engine)
    assert driver.engine.ready


class Timed(ScriptedRunner):
    """Says 60 61 60 61 …; every further row costs a tenth of the first."""

    def __init__(self) -> None:
        super().__init__(lambda position: 60 + position % 2)
        self.now_s = 0.0

    def forward(self, batch: Batch) -> Float32:
        self.now_s += 1 + 0.1 * (len(batch.token_ids) - 1)
        return super().forward(batch)


def test_guesses_are_made_for_less_and_less_of_the_steps_where_they_do_not_pay() -> None:
    runner = Timed()
    engine = Engine(runner, max_draft_tokens=8, make_drafter=always([50] * 8), clock=lambda: runner.now_s)
    run_alone(engine, request(prompt_of(5), 900))
    # A few drafts of four guesses or one, then 16, 32, 64, … steps without.
    assert 0 < engine.stats().num_drafted_tokens_total < 60
    assert runner.now_s < 1.01 * 900


def test_guesses_go_on_where_they_pay() -> None:
    runner = Timed()
    engine = Engine(runner, max_draft_tokens=8, clock=lambda: runner.now_s)
    run_alone(engine, request(prompt_of(5), 900))
    assert engine.stats().num_accepted_tokens_total > 700
    assert runner.now_s < 900 / 4


def test_gains_decide_between_pausing_and_longer_drafts() -> None:
    drafting = Drafting(NgramDrafter())
    drafting.learn(4, 4, gain=3.0)
    assert drafting.length == 8
    assert drafting.num_paused == 0
    drafting.learn(8, 2, gain=1.5)
    assert drafting.length == 3
    while not drafting.num_paused:
        drafting.learn(3, 0, gain=0.5)
    assert drafting.num_paused == FIRST_PAUSE
    assert drafting.pause == 2 * FIRST_PAUSE
    drafting.num_paused = 0
    while not drafting.num_paused:
        drafting.learn(3, 0, gain=0.5)
    assert drafting.num_paused == 2 * FIRST_PAUSE
    drafting.learn(4, 4, gain=5.0)
    assert drafting.pause == FIRST_PAUSE


def test_what_followed_the_same_three_tokens_is_proposed_else_the_same_two() -> None:
    drafter = NgramDrafter()
    assert drafter.propose([1, 2, 3, 4, 5, 9, 2, 3, 7, 1, 2, 3], 3) == [4, 5, 9]  # after 1 2 3, not the later 2 3
    assert drafter.propose([8, 9, 2], 2) == [3, 7]  # after 9 2; 8 9 2 is new
    assert drafter.propose([1000], 2) == ()


def test_a_repetition_is_proposed_on_and_on() -> None:
    assert NgramDrafter().propose([5, 6, 7, 5, 6, 7], 7) == [5, 6, 7, 5, 6, 7, 5]
    assert NgramDrafter().propose([4, 4, 4], 3) == [4, 4, 4]


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3]])
def test_what_is_new_gives_no_guess(tokens: list[int]) -> None:
    assert NgramDrafter().propose(tokens, 4) == ()


def test_a_long_text_takes_bounded_memory() -> None:
    drafter = NgramDrafter()
    drafter.propose(list(range(3 * MOST_NGRAMS)), 1)
    assert all(len(following) <= MOST_NGRAMS for following in drafter._next.values())
