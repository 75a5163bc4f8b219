"""`musespark eval`: scores of a checkpoint beside its baselines, and the paired difference to an earlier run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from musespark.api.load import load_model
from musespark.api.settings import Settings
from musespark.chat.formats import open_format, open_tokenizer
from musespark.engine.native import NativeRunner
from musespark.engine.runner import PAGE_SIZE
from musespark.errors import SetupError
from musespark.evals.results import Result, compare, read_result, read_results, result_path, table_row, write_result
from musespark.evals.task import Outcome, Source, Task
from musespark.model.checkpoint import BUNDLED, open_checkpoint
from musespark.providers.local_scorer import LocalScorer
from musespark.providers.provider_sampler import ProviderSampler

SCORED_TOKENS = 16_384  # a prompt with a continuation, at the most


def run_eval(
    settings: Settings, tasks: str, source: Source, out: Path, *, against: Path | None, again: bool, as_json: bool
) -> None:
    """Run the tasks that have no result in `out` yet (all of them with `again`) and print the table of all."""
    if find_spec("zstandard") is None:
        raise SetupError("reading evaluation sets needs zstandard: pip install -e '.[evals]'")
    from musespark.evals.suite import TASKS, task_names

    names = task_names(tasks)
    earlier = read_results(against) if against else {}
    missing = [name for name in names if again or not result_path(out, name).exists()]
    made = [TASKS[name](source) for name in missing]
    scored = [task for task in made if task.needs == "scorer"]
    answered = [task for task in made if task.needs == "sampler"]
    model = settings.model_name or (settings.checkpoint or BUNDLED).name
    with Progress(console=Console(stderr=True), transient=True) as bar:
        if scored:
            with open_scorer(settings) as scorer:
                for task in bar.track(scored, description="scoring"):
                    _write(out, model, task, task.run(scorer))
        if answered:
            with open_sampler(settings) as sampler:
                for question_task in bar.track(answered, description="answering"):
                    _write(out, model, question_task, question_task.run(sampler))
    print_results([read_result(result_path(out, name)) for name in names], earlier, as_json=as_json)


def _write(out: Path, model: str, task: Task, found: Iterator[Outcome]) -> None:
    write_result(out, task.name, task.unit, model, task.baselines(), found)


@contextmanager
def open_scorer(settings: Settings) -> Iterator[LocalScorer]:
    folder = (settings.checkpoint or BUNDLED).resolve()
    checkpoint = open_checkpoint(folder, check_while_reading=True)
    tokenizer = open_tokenizer(folder)
    chat = open_format(folder, checkpoint.config.model_type, tokenizer)
    num_pages = min(SCORED_TOKENS, checkpoint.config.text.max_position_embeddings) // PAGE_SIZE
    runner = NativeRunner(
        checkpoint,
        precision=settings.precision,
        num_full_pages=num_pages,
        num_sliding_pages=num_pages,
        num_threads=settings.threads,
    )
    try:
        yield LocalScorer(runner, tokenizer, chat)
    finally:
        runner.close()
        chat.close()


@contextmanager
def open_sampler(settings: Settings) -> Iterator[ProviderSampler]:
    with asyncio.Runner() as loop:
        loaded = load_model(settings)
        try:
            yield ProviderSampler(loaded.provider, loop, concurrency=settings.max_running)
        finally:
            loop.run(loaded.close(0.0))


def print_results(results: list[Result], earlier: dict[str, Result], *, as_json: bool) -> None:
    rows = [table_row(result) for result in results]
    differences = compare(results, list(earlier.values()))
    if as_json:
        for row in rows:
            found = differences.get(row["task"])
            if found is not None:
                row["difference"] = {"mean": found.mean, "low": found.low, "high": found.high, "items": found.num_items}
        print(json.dumps({"model": results[0].model, "results": rows}))
        return
    table = Table(title=results[0].model)
    for heading in ("task", "score", "± s.e.", "chance", "majority", "items"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    if differences:
        table.add_column("difference, 95 %", justify="right")
    for row in rows:
        cells = [
            row["task"],
            *(_shown(row[name], row["unit"]) for name in ("score", "standard_error", "chance", "majority")),
        ]
        cells.append(f"{row['items']:,}")
        found = differences.get(row["task"])
        if found is not None:
            mean, low, high = (_shown_gain(value, row["unit"]) for value in (found.mean, found.low, found.high))
            cells.append(f"{mean} ({low} … {high})")
        table.add_row(*cells)
    Console().print(table)


def _shown(value: float | None, unit: str) -> str:
    """Accuracies in per cent. Bits per byte are stored negative, so that higher is better; shown are the bits."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if unit == "accuracy" else f"{abs(value):.3f}"


def _shown_gain(value: float, unit: str) -> str:
    """A plus is better, whatever the unit."""
    return f"{100 * value:+.1f} %" if unit == "accuracy" else f"{value:+.3f}"
