"""Every field is bounded, and both sides of each bound are known."""

from __future__ import annotations

import math

import pytest

from musespark.engine.request import Request, SamplingParams
from musespark.errors import InvalidRequest
from tests.engine.driver import picture, request

GOOD = {
    "max_tokens": [1, 2**31 - 1],
    "temperature": [0, 0.0, 5e-324, 2, 2.0],
    "top_p": [0, 1.0],
    "min_p": [0.0, 1],
    "top_k": [0, 1, 2**31 - 1],
    "frequency_penalty": [-2, 2.0],
    "presence_penalty": [-2.0, 2],
    "repetition_penalty": [5e-324, 1, 10.0],
    "seed": [None, 0, -(2**63), 2**64 - 1],
    "logprobs": [None, 0, 20],
    "logit_bias": [{}, {0: -100, 1: 100.0}, dict.fromkeys(range(1024), 1)],
}
NEVER_A_NUMBER = [math.nan, math.inf, -math.inf, 10**400, True, "1", None, [1]]
BAD = {
    "max_tokens": [0, -1, 2**31, 1.0, *NEVER_A_NUMBER],
    "temperature": [-1e-9, 2.000001, *NEVER_A_NUMBER],
    "top_p": [-0.1, 1.1, *NEVER_A_NUMBER],
    "min_p": [-0.1, 1.1, *NEVER_A_NUMBER],
    "top_k": [-1, 2**31, 1.0, *NEVER_A_NUMBER],
    "frequency_penalty": [-2.1, 2.1, *NEVER_A_NUMBER],
    "presence_penalty": [-2.1, 2.1, *NEVER_A_NUMBER],
    "repetition_penalty": [0, 0.0, -1, 10.1, *NEVER_A_NUMBER],
    "seed": [-(2**63) - 1, 2**64, 1.5, True, "1"],
    "logprobs": [-1, 21, 1.0, True, "1"],
    "logit_bias": [{1: 100.1}, {1: math.nan}, {-1: 0.0}, {"1": 0.0}, {True: 1.0}, dict.fromkeys(range(1025), 1)],
}


def named(table: dict[str, list]) -> list:
    return [
        pytest.param(name, value, id=f"{name}-{i}") for name, values in table.items() for i, value in enumerate(values)
    ]


@pytest.mark.parametrize(("name", "value"), named(GOOD))
def test_value_within_the_bounds_is_taken(name: str, value: object) -> None:
    assert getattr(SamplingParams(**{"max_tokens": 5} | {name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), named(BAD))
def test_value_out_of_bounds_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=name) as refusal:
        SamplingParams(**{"max_tokens": 5} | {name: value})
    assert refusal.value.param == name


@pytest.mark.parametrize("n", [0, 17, 10**9, True, "2", 1.0])
def test_number_of_choices_is_bounded(n: object) -> None:
    with pytest.raises(InvalidRequest, match="n is"):
        request([40], n=n)


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no tokens"):
        request([])


@pytest.mark.parametrize(
    ("spans", "num_images"),
    [
        (((0, 3),), 2),
        (((0, 3), (3, 6)), 1),
        (((0, 4),), 1),
        (((3, 3),), 1),
        (((5, 2),), 1),
        (((-1, 2),), 1),
        (((8, 11),), 1),
        (((3, 6), (0, 3)), 2),
        (((0, 3), (2, 5)), 2),
    ],
)
def test_image_places_must_fit(spans: tuple[tuple[int, int], ...], num_images: int) -> None:
    with pytest.raises(InvalidRequest, match="image"):
        request([10] * 10, images=(picture(3),) * num_images, image_spans=spans)


def test_image_places_may_touch() -> None:
    made = request([10] * 6, images=(picture(3),) * 2, image_spans=((0, 3), (3, 6)))
    assert isinstance(made, Request)
    assert made.image_tokens == 6
