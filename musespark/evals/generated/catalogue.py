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
from musespark.evals.generated.retrieval import needle, retrieval
from musespark.evals.generated.sample import Generator, Rng, Sample
from musespark.evals.generated.screens import screens
from musespark.evals.generated.shapes import shapes
from musespark.evals.generated.tool_calls import one_call, tool_calls

LENGTHS = {"2k": 2_000, "8k": 7_900, "32k": 32_000}  # tokens; with the question and the format around it, 8k is 8,192

ONE_BY_ONE: dict[str, Generator] = {
    "arithmetic_easy": partial(arithmetic, level=1),
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
    **{
        f"{kind}_{size}": partial(make, tokens=tokens)
        for kind, make in (("needle", needle), ("retrieval", retrieval))
        for size, tokens in LENGTHS.items()
    },
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
