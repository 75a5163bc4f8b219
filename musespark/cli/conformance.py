"""`musespark conformance`: golden vectors written, checked against an engine, and an engine's answers as files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from musespark.errors import DataError

if TYPE_CHECKING:
    from musespark.conformance.compare import Result
    from musespark.conformance.engines import Engine
    from musespark.conformance.suite import Suite

app = typer.Typer(help="Golden vectors for any engine of these families.", no_args_is_help=True)

EngineName = Literal["reference", "native", "transformers"]
SuiteArgument = Annotated[Path, typer.Argument(help="Folder of the suite.")]
OnlyOption = Annotated[str | None, typer.Option(help="Only the cases whose id begins so: llama4, muse_spark.render.")]
EngineHelp = "Who answers: our torch network, our native runner, or transformers."


@app.command("write")
def write(
    folder: Annotated[Path, typer.Argument(help="Folder to write; it appears whole or not at all.")],
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Another seed makes another suite.")] = 0,
) -> None:
    """Write a suite: small random checkpoints, what goes in, what must come out (needs torch)."""
    from rich.status import Status

    _need("torch", "writing a suite runs the reference network: pip install -e '.[training]'")
    from musespark.conformance.write import write_suite

    with Status("writing", console=Console(stderr=True)) as status:
        cases = write_suite(folder, seed=seed, progress=lambda part: status.update(f"writing {part}"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    num_mistakes = len({guard.mistake for case in cases for guard in case.guards})
    print(f"{folder}: {len(cases)} cases that tell {num_mistakes} mistakes, {size / 1e6:.1f} MB")


@app.command("check")
def check(
    folder: SuiteArgument,
    engine: Annotated[EngineName | None, typer.Option(help=EngineHelp, show_default=False)] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Folder of answers that any other engine wrote.", show_default=False)
    ] = None,
    only: OnlyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """Check an engine, or answers in files. Exit status 1 if a case fails, or none passes."""
    from musespark.conformance.check import check as run
    from musespark.conformance.engines import AnswersEngine
    from musespark.conformance.suite import open_suite

    if (engine is None) == (answers is None):
        raise DataError("say who answers: either --engine or --answers")
    suite = open_suite(folder)
    asked = AnswersEngine(answers, suite) if answers is not None else _engine(engine or "reference")
    results = list(run(suite, asked, only))
    counts = {status: sum(r.status == status for r in results) for status in ("pass", "fail", "unsupported")}
    if as_json:
        print(json.dumps(_document(suite, asked, results, counts), ensure_ascii=False))
    else:
        _print(results, counts)
    if counts["fail"] or not counts["pass"]:
        raise typer.Exit(1)


@app.command("answer")
def answer(
    folder: SuiteArgument,
    target: Annotated[Path, typer.Argument(help="Folder to write the answers into; new or empty.")],
    engine: Annotated[EngineName, typer.Option(help=EngineHelp)] = "native",
    only: OnlyOption = None,
) -> None:
    """Write an engine's answers as the files that `check --answers` reads: an example of them."""
    from musespark.conformance.check import write_answers
    from musespark.conformance.suite import open_suite

    written, unsupported = write_answers(open_suite(folder), _engine(engine), target, only)
    print(f"{target}: {written} answers; {unsupported} cases are not supported by {engine}")


def _engine(name: str) -> Engine:
    from musespark.conformance.engines import ENGINES

    if name != "native":
        _need("torch", f"the engine {name!r} runs in torch: pip install -e '.[training]'")
    return ENGINES[name]()


def _need(module: str, why: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise DataError(why)


def _document(suite: Suite, engine: Engine, results: list[Result], counts: dict[str, int]) -> dict[str, Any]:
    return {
        "suite": {name: suite.manifest.get(name) for name in ("format", "format_version", "seed", "written_by")},
        "engine": engine.name,
        **counts,
        "cases": [result.to_dict() for result in results],
    }


def _print(results: list[Result], counts: dict[str, int]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(box=None)
    for name in ("case", "result", "difference", "at most", "where"):
        table.add_column(name, justify="right" if name in ("difference", "at most") else "left", overflow="fold")
    colours = {"pass": "green", "fail": "red", "unsupported": "yellow"}
    for r in results:
        exact = r.case.kind not in ("logits", "patches")
        difference = "" if r.difference is None else "equal" if exact else f"{r.difference:.2g}"
        at_most = "equal" if exact else f"{r.case.tolerance:.2g}"
        table.add_row(r.case.id, f"[{colours[r.status]}]{r.status}[/]", difference, at_most, r.where)
    console.print(table)
    for r in results:
        if r.status == "fail":
            console.print(f"\n{r.case.id}: {r.note or r.case.about}", markup=False, highlight=False)
            for guard in r.case.guards:
                moved = "" if guard.moves is None else f" (which moves it by {guard.moves})"
                console.print(f"  fails an engine that {guard.mistake}{moved}", markup=False, highlight=False)
    reasons = sorted({r.note for r in results if r.status == "unsupported"})
    for reason in reasons[:5]:
        console.print(f"unsupported: {reason}", style="yellow", markup=False, highlight=False)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
