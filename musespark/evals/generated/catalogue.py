"""Every generator by name, as recipes and suites ask for it: `samples("charts", rng, 100)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from musespark.errors import DataError
from musespark.evals.generated.arithmetic import arithmetic
from musespark.evals.generated.charts import charts
from musespark.evals.generated.drawn_text import digits, drawn_text, word
from musespark.evals.generated.logic import logic
from musespark.evals.generated.programs import program_samples
from musespark.evals.generated.retrieval import retrieval
from musespark.evals.generated.sample import Generator, Rng, Sample
from musespark.evals.generated.screens import screens
from musespark.evals.generated.shapes import shapes
from musespark.evals.generated.tool_calls import one_call, tool_calls

ONE_BY_ONE: dict[str, Generator] = {
    "arithmetic": arithmetic,
    "logic": logic,
    "tool_calls": tool_calls,
    "one_call": one_call,
    "drawn_text": drawn_text,
    "drawn_digits": digits,
    "drawn_words": word,
    "shapes": shapes,
    "charts": charts,
    "screens": screens,
    "retrieval_2k": partial(retrieval, characters=2_000),  # characters; about a quarter as many tokens
    "retrieval_8k": partial(retrieval, characters=8_000),
    "retrieval_32k": partial(retrieval, characters=32_000),
    "retrieval_128k": partial(retrieval, characters=128_000),
}
IN_BATCHES: dict[str, Callable[[Rng, int], Iterator[Sample]]] = {"programs": program_samples}


def samples(name: str, rng: Rng, count: int) -> Iterator[Sample]:
    """`count` samples of the generator `name`. Raises DataError if there is none of that name."""
    if name in IN_BATCHES:
        yield from IN_BATCHES[name](rng, count)
        return
    if name not in ONE_BY_ONE:
        raise DataError(f"there is no generator {name!r}; there are {', '.join(sorted({*ONE_BY_ONE, *IN_BATCHES}))}")
    for _ in range(count):
        yield ONE_BY_ONE[name](rng)
