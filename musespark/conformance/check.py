"""Checking an engine against a suite, case by case; and writing an engine's answers into files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from musespark.chat.tokenizer import Tokenizer
from musespark.conformance.compare import Result, compare
from musespark.conformance.engines import Engine, Unsupported
from musespark.conformance.suite import Answer, Case, Suite, write_answer
from musespark.errors import DataError, MuseSparkError


def chosen(suite: Suite, only: str | None) -> list[Case]:
    """The cases whose id begins with `only`. Raises DataError if there is none."""
    cases = [case for case in suite.cases if case.id.startswith(only or "")]
    if not cases:
        raise DataError(f"no case begins with {only!r}; the first is {suite.cases[0].id}")
    return cases


def check(suite: Suite, engine: Engine, only: str | None = None) -> Iterator[Result]:
    """One result for every case, in the suite's order, as they come."""
    cases = chosen(suite, only)
    tokenizers = {family: Tokenizer.from_file(suite.tokenizer(family)) for family in {case.family for case in cases}}
    for case in cases:
        try:
            answer = engine.answer(suite, case)
        except Unsupported as reason:
            yield Result(case, "unsupported", note=str(reason))
            continue
        except MuseSparkError as error:  # a file of answers that can't be read, an engine that fails
            yield Result(case, "fail", note=error.message)
            continue
        source = f"{engine.name}/{case.file_name}"
        yield compare(case, suite.given(case), suite.expected(case), answer, tokenizers[case.family], source)


def write_answers(suite: Suite, engine: Engine, folder: Path, only: str | None = None) -> tuple[int, int]:
    """The engine's answers as files that `check --answers` reads. Returns how many it has, and how many it lacks.

    Raises DataError if the folder holds anything.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    answers: list[tuple[Case, Answer]] = []
    cases = chosen(suite, only)
    for case in cases:
        try:
            answers.append((case, engine.answer(suite, case)))
        except Unsupported:
            continue
        write_answer(folder / case.file_name, answers[-1][1])
    return len(answers), len(cases) - len(answers)
