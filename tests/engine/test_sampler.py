"""The sampler against the obvious one: every rule, alone and together."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musespark.engine import sampler
from musespark.engine.request import SampledToken, SamplingParams
from musespark.engine.sampler import Sampler, SamplingState, largest, nucleus, pick
from musespark.errors import EngineFailed
from tests.engine.reference_sampler import distribution, log_softmax

V = 24


def params(**fields: object) -> SamplingParams:
    return SamplingParams(max_tokens=1, **fields)  # type: ignore[arg-type]


def some_logits(seed: int, spread: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(V) * spread).astype(np.float32)


def draw(logits: np.ndarray, state: SamplingState, count: int, suppressed: tuple[int, ...] = ()) -> Counter[int]:
    """`count` tokens from the same logits with the same history."""
    sampler = Sampler(suppressed)
    tokens = []
    for _ in range(count):
        (token,) = sampler.sample(logits[None].copy(), [state])
        assert isinstance(token, SampledToken)
        tokens.append(token.id)
    return Counter(tokens)


COMBINATIONS = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"temperature": 1.7, "top_k": 12, "top_p": 0.8, "min_p": 0.05},
    {"frequency_penalty": 1.5, "presence_penalty": -0.7},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.5, "top_p": 0.9},
    {"logit_bias": {3: 5.0, 7: -100.0, 11: 100.0}, "temperature": 2.0, "top_k": 3},
    {"logit_bias": {3: 2.5}, "frequency_penalty": 0.4, "repetition_penalty": 1.2, "top_p": 0.95, "min_p": 0.01},
]


@pytest.mark.parametrize("fields", COMBINATIONS, ids=str)
def test_frequencies_follow_the_reference_distribution(fields: dict[str, object]) -> None:
    logits, prompt, generated, suppressed = some_logits(1), [1, 2, 3, 20], [3, 3, 5, 5, 5, 9], (0, 13)
    state = SamplingState(params(seed=11, **fields), 0, prompt, V)
    for token in generated:
        state.count(token)
    expected = distribution(logits, state.params, prompt, generated, suppressed)
    num_draws = 6000
    counts = draw(logits, state, num_draws, suppressed)
    assert all(expected[token] > 0 for token in counts)
    # Pearson's chi-square over the tokens with enough expected draws, the others together.
    common = [token for token in range(V) if expected[token] * num_draws >= 5]
    observed = [counts[token] for token in common]
    wanted = [expected[token] * num_draws for token in common]
    rest = num_draws - sum(wanted)
    if rest >= 5:
        observed.append(num_draws - sum(observed))
        wanted.append(rest)
    chi_square = sum((o - w) ** 2 / w for o, w in zip(observed, wanted, strict=True))
    freedom = max(1, len(observed) - 1)
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 4  # a fixed seed; beyond the 99.9th percentile


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.0, 0.5, 1.0]),
    st.integers(0, V + 2),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(0.1, 3),
    st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100), max_size=4),
    st.lists(st.integers(0, V - 1), max_size=8),
)
def test_a_token_is_possible_exactly_where_the_reference_says(
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    frequency_penalty: float,
    presence_penalty: float,
    repetition_penalty: float,
    logit_bias: dict[int, float],
    generated: list[int],
) -> None:
    logits = np.round(some_logits(seed) * 2) / 2  # many ties
    asked = params(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        repetition_penalty=repetition_penalty,
        logit_bias=logit_bias,
        seed=seed,
    )
    state = SamplingState(asked, 0, [1, 2], V)
    for token in generated:
        state.count(token)
    expected = distribution(logits, asked, [1, 2], generated, (4,))
    counts = draw(logits, state, 12, (4,))
    possible = {token for token, probability in enumerate(expected) if probability > 0}
    borderline = 1e-9  # where rounding decides whether top_p was reached
    assert set(counts) <= possible or min(abs(p - top_p) for p in np.cumsum(sorted(expected)[::-1])) < borderline
    if len(possible) == 1:
        assert set(counts) == possible


def test_greedy_ties_go_to_the_lowest_id() -> None:
    logits = np.zeros(V, dtype=np.float32)
    logits[[5, 9, 17]] = 3.0
    for fields in ({}, {"logit_bias": {20: 3.0}}, {"presence_penalty": 0.1}, {"temperature": 1.0, "top_k": 1}):
        state = SamplingState(params(**{"temperature": 0.0} | fields), 0, [], V)
        assert set(draw(logits, state, 5)) == {5}


def test_top_k_ties_go_to_the_lowest_ids() -> None:
    logits = np.zeros(V, dtype=np.float32)
    state = SamplingState(params(top_k=3, seed=1), 0, [], V)
    assert set(draw(logits, state, 300)) == {0, 1, 2}


def test_tiniest_temperature_is_greedy() -> None:
    logits = some_logits(3)
    state = SamplingState(params(temperature=5e-324), 0, [], V)
    assert set(draw(logits, state, 20)) == {int(logits.argmax())}


@pytest.mark.parametrize("fields", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.5}, {"temperature": 0.0}], ids=str)
def test_tiniest_repetition_penalty_prefers_what_was_seen(fields: dict[str, object]) -> None:
    logits = some_logits(3)
    logits[[5, 7]] = (20.0, 30.0)
    state = SamplingState(params(repetition_penalty=5e-324, **fields), 0, [5], V)
    assert set(draw(logits, state, 20)) == {5}


def test_top_p_zero_keeps_the_most_likely() -> None:
    logits = some_logits(4)
    assert set(draw(logits, SamplingState(params(top_p=0.0), 0, [], V), 20)) == {int(logits.argmax())}


def test_min_p_one_keeps_the_most_likely() -> None:
    logits = some_logits(4)
    assert set(draw(logits, SamplingState(params(min_p=1.0), 0, [], V), 20)) == {int(logits.argmax())}


def test_greedy_batch_equals_one_by_one() -> None:
    logits = np.random.default_rng(0).standard_normal((16, 1000)).astype(np.float32)
    states = [SamplingState(params(temperature=0.0), 0, [], 1000) for _ in range(16)]
    together = Sampler([3]).sample(logits.copy(), states)
    alone = [Sampler([3]).sample(line[None].copy(), [state])[0] for line, state in zip(logits, states, strict=True)]
    assert together == alone


def test_random_numbers_belong_to_seed_and_index() -> None:
    def numbers(seed: int | None, index: int) -> list[float]:
        return SamplingState(params(seed=seed), index, [], V).generator.random(4).tolist()

    # Philox is counter-based and specified: the same numbers on every machine.
    expected = np.random.Generator(np.random.Philox(key=np.array([42, 1], dtype=np.uint64))).random(4).tolist()
    assert numbers(42, 1) == expected
    runs = [numbers(42, 0), numbers(42, 1), numbers(43, 0), numbers(-1, 0), numbers(None, 0), numbers(None, 0)]
    assert len({tuple(run) for run in runs}) == 6
    assert numbers(-1, 0) == numbers((1 << 64) - 1, 0)


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_those_of_the_model_before_anything_else(num_top: int, temperature: float) -> None:
    logits = some_logits(8)
    asked = params(logprobs=num_top, temperature=temperature, top_k=3, logit_bias={7: 100.0}, presence_penalty=2.0)
    (token,) = Sampler([2, 6]).sample(logits[None].copy(), [SamplingState(asked, 0, [7], V)])
    expected = log_softmax(logits, [2, 6])
    assert token is not None
    assert token.id == 7
    assert token.logprob == pytest.approx(expected[7], abs=1e-6)
    ranked = sorted(range(V), key=lambda i: (-expected[i], i))[:num_top]
    assert [i for i, _ in token.top] == ranked
    assert [value for _, value in token.top] == pytest.approx([expected[i] for i in ranked], abs=1e-6)


def test_no_alternative_is_impossible() -> None:
    (token,) = Sampler(range(2, V)).sample(some_logits(1)[None], [SamplingState(params(logprobs=20), 0, [], V)])
    assert token is not None
    assert {i for i, _ in token.top} == {0, 1}
    assert all(math.isfinite(value) for _, value in token.top)


def test_without_logprobs_none_are_computed() -> None:
    (token,) = Sampler([]).sample(some_logits(1)[None], [SamplingState(params(), 0, [], V)])
    assert token is not None
    assert (token.logprob, token.top) == (None, ())


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(1, 45))
def test_largest_equals_a_sort(values: list[int], count: int) -> None:
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert largest(np.array(values, dtype=np.float64), count).tolist() == expected


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(0, 99))
def test_nucleus_is_the_fewest_that_reach_top_p(weights: list[int], percent: int) -> None:
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    found = nucleus(np.array(weights, dtype=np.float64), percent / 100).tolist()
    assert sorted(found) == sorted(order[: len(found)])
    found = order[: len(found)]
    reached, before, wanted = sum(weights[i] for i in found), sum(weights[i] for i in found[:-1]), sum(weights)
    assert 100 * reached >= percent * wanted or math.isclose(100 * reached, percent * wanted)
    assert len(found) == 1 or 100 * before < percent * wanted or math.isclose(100 * before, percent * wanted)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.9, 0.999])
def test_nucleus_of_a_vocabulary_equals_that_of_a_sort(kind: type[np.floating], top_p: float) -> None:
    for spread in (0.1, 1.0, 3.0, 8.0):
        weights = np.exp(np.random.default_rng(5).standard_normal(20_000) * spread - 40).astype(kind)
        order = np.argsort(-weights, kind="stable")
        exact = weights.astype(np.float64)
        count = int(np.searchsorted(np.cumsum(exact[order]), top_p * exact.sum())) + 1
        assert nucleus(weights, top_p).tolist() == sorted(order[:count])


def test_pick_gives_each_its_share_and_nothing_to_weight_zero() -> None:
    weights = np.array([0.0, 1.0, 0.0, 3.0, 0.0])
    below_one = np.nextafter(1.0, 0.0)
    picked = [pick(weights, uniform) for uniform in (0.0, np.nextafter(0.25, 0), 0.25, 0.5, below_one)]
    assert picked == [1, 1, 3, 3, 3]
    rounding = np.array([1.0, *[2.0**-54] * 3, 0.0])  # below_one times the sum rounds to the sum itself
    assert rounding[pick(rounding, below_one)] > 0
    assert pick(np.array([5e-324, 0.0]), below_one) == 0  # so does this product


@pytest.mark.parametrize("size", [4096, 4097, 5000, 20_000])
def test_pick_of_many_equals_one_sum_over_all(size: int) -> None:
    weights = np.random.default_rng(1).random(size).astype(np.float32) ** 8
    weights[np.random.default_rng(2).random(size) < 0.5] = 0
    cumulative = np.cumsum(weights, dtype=np.float64)
    for uniform in np.random.default_rng(3).random(500):
        assert pick(weights, uniform) == np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    assert weights[pick(weights, float(np.nextafter(1.0, 0.0)))] > 0
    assert pick(weights, 0.0) == np.flatnonzero(weights)[0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_penalties_that_make_no_numbers_fail_their_own_row(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """No allowed penalty does; should one be found, its neighbours must not hear of it."""

    def break_logits(logits: np.ndarray, *_: object) -> None:
        logits[3] = math.nan

    monkeypatch.setattr(sampler, "penalise", break_logits)
    logits = some_logits(3)
    states = [
        SamplingState(params(temperature=temperature, **fields), 0, [5], V)
        for fields in ({"top_k": 1}, {"presence_penalty": 1})
    ]
    well, sick = Sampler([]).sample(np.stack([logits, logits]), states)
    assert isinstance(well, SampledToken)
    assert well.id == int(logits.argmax())
    assert isinstance(sick, EngineFailed)
