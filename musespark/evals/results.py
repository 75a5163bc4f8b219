"""A result on disk: a header line, one JSON line per outcome, and the table of it all.

A file is written line by line while a task runs and renamed when it is whole; a run that was cut goes on with the first
task that has no file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from musespark.errors import DataError
from musespark.evals.statistics import Difference, estimate, paired_difference
from musespark.evals.task import Baselines, Outcome


@dataclass(frozen=True, slots=True)
class Result:
    task: str
    unit: str
    model: str
    baselines: Baselines
    outcomes: tuple[Outcome, ...]


def result_path(folder: Path, task: str) -> Path:
    return folder / f"{task}.jsonl"


def write_result(
    folder: Path, task: str, unit: str, model: str, baselines: Baselines, found: Iterable[Outcome]
) -> None:
    """Run through `found` and write it, whole or not at all under its final name."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = result_path(folder, task).with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        header = {"task": task, "unit": unit, "model": model, **asdict(baselines)}
        file.write(json.dumps(header) + "\n")
        for outcome in found:
            file.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")
            file.flush()
    partial.replace(result_path(folder, task))


def read_result(path: Path) -> Result:
    """Raises DataError for a file that `write_result` did not write."""
    try:
        header, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        outcomes = tuple(Outcome(**line) for line in lines)
        baselines = Baselines(header["chance"], header["majority"])
        return Result(header["task"], header["unit"], header["model"], baselines, outcomes)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not a result of `musespark eval`: {error}") from None


def read_results(folder: Path) -> dict[str, Result]:
    """Task -> result, of all results in a folder."""
    return {path.stem: read_result(path) for path in sorted(folder.glob("*.jsonl"))}


def table_row(result: Result) -> dict[str, Any]:
    """Score, standard error and baselines, for the table and for JSON."""
    found = estimate(result.outcomes)
    return {
        "task": result.task,
        "unit": result.unit,
        "score": found.mean,
        "standard_error": None if math.isnan(found.standard_error) else found.standard_error,
        "chance": result.baselines.chance,
        "majority": result.baselines.majority,
        "items": found.num_items,
    }


def compare(candidate: Sequence[Result], incumbent: Sequence[Result]) -> dict[str, Difference]:
    """Task -> difference on the items that both have, for tasks in both."""
    others = {result.task: result for result in incumbent}
    return {
        result.task: paired_difference(result.outcomes, others[result.task].outcomes)
        for result in candidate
        if result.task in others
    }
