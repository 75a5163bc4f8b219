"""Which tasks there are, by name, and which of them a word like `language` stands for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from musespark.errors import DataError
from musespark.evals.answer_tasks import ExactAnswers, FunctionCalls
from musespark.evals.choice_tasks import Choices, SentencePairs
from musespark.evals.naming import PictureNames
from musespark.evals.task import Source, Task
from musespark.evals.text_tasks import DOMAINS, HeldOutText

GENERATED_COUNT = 400  # questions of a generated task: a standard error of 2.5 points at the most
LONG_COUNT = 60  # of those with long prompts

Make = Callable[[Source], Task]


def _generated(name: str, generator: str, count: int, source: Source) -> Task:
    return ExactAnswers(name, generator, min(count, source.limit or count))


def _calls(name: str, measure: str, source: Source) -> Task:
    assert measure in ("validity", "match")
    count = min(GENERATED_COUNT, source.limit or GENERATED_COUNT)
    return FunctionCalls(name, "validity" if measure == "validity" else "match", count)


TASKS: dict[str, Make] = {
    **{f"text_{domain}": partial(HeldOutText, domain) for domain in DOMAINS},
    "blimp": partial(SentencePairs, "blimp"),
    **{name: partial(Choices, name) for name in ("arc_easy", "piqa", "openbookqa", "social_iqa")},
    "arithmetic_easy": partial(_generated, "arithmetic_easy", "arithmetic_easy", GENERATED_COUNT),
    "arithmetic": partial(_generated, "arithmetic", "arithmetic", GENERATED_COUNT),
    "logic": partial(_generated, "logic", "logic", GENERATED_COUNT),
    "programs": partial(_generated, "programs", "programs", GENERATED_COUNT),
    "call_validity": partial(_calls, "call_validity", "validity"),
    "call_match": partial(_calls, "call_match", "match"),
    **{
        f"{kind}_{size}": partial(_generated, f"{kind}_{size}", f"{kind}_{size}", LONG_COUNT)
        for kind in ("needle", "retrieval")
        for size in ("2k", "8k", "32k")
    },
    **{name: partial(PictureNames, name) for name in ("emoji", "icons", "grocery", "clothing")},
    "drawn_digits": partial(_generated, "drawn_digits", "drawn_digits", GENERATED_COUNT),
    "drawn_words": partial(_generated, "drawn_words", "drawn_words", GENERATED_COUNT),
    "charts": partial(_generated, "charts", "charts", GENERATED_COUNT),
    "shapes": partial(_generated, "shapes", "shapes", GENERATED_COUNT),
    "screens": partial(_generated, "screens", "screens", GENERATED_COUNT),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "text": tuple(f"text_{domain}" for domain in DOMAINS),
    "language": ("blimp", "arc_easy", "piqa", "openbookqa", "social_iqa"),
    "reasoning": ("arithmetic_easy", "arithmetic", "logic", "programs"),
    "tools": ("call_validity", "call_match"),
    "long": ("needle_2k", "needle_8k", "needle_32k", "retrieval_2k", "retrieval_8k", "retrieval_32k"),
    "pictures": ("emoji", "icons", "grocery", "clothing", "drawn_digits", "drawn_words", "charts", "shapes", "screens"),
}


def task_names(words: str) -> list[str]:
    """The tasks that a comma-separated list of tasks, groups and `all` names, in the suite's order, each once."""
    chosen: set[str] = set()
    for word in filter(None, (word.strip() for word in words.split(","))):
        if word == "all":
            chosen |= set(TASKS)
        elif word in GROUPS:
            chosen |= set(GROUPS[word])
        elif word in TASKS:
            chosen.add(word)
        else:
            raise DataError(f"there is no task {word!r}; there are all, {', '.join(GROUPS)}, {', '.join(TASKS)}")
    if not chosen:
        raise DataError("no task is named; `all` runs every one")
    return [name for name in TASKS if name in chosen]
