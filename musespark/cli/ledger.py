"""`musespark ledger`: proof that the books agree, and any charge explained. Balances and caps: `musespark credit`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from musespark.cli.state import JsonOption, StateOption

if TYPE_CHECKING:
    from musespark.accounts.database import Database

app = typer.Typer(help="The ledger: verify the books, explain a charge.", no_args_is_help=True)


@app.command()
def verify(as_json: JsonOption = False, state_dir: StateOption = None) -> None:
    """Compute every figure a second way and compare with the engine's records. Exits with 1 if anything differs."""
    from musespark.accounts.reconcile import verify as compare

    with _database(state_dir) as (database, folder):
        report = compare(database, folder / "journal")
    if as_json:
        print(json.dumps(asdict(report) | {"sound": report.sound}))
    else:
        for finding in report.findings:
            print(f"{finding.check}: {finding.what}: expected {finding.expected:,}, found {finding.found:,}")
        if report.damaged:
            print(f"{report.damaged:,} lines of the journal can't be read")
        print(
            f"difference {report.difference:,} in {report.transfers:,} transfers, {report.holds:,} holds, "
            f"{report.usage_records:,} usage records and {report.engine_records:,} records of the engine; "
            f"{report.pending:,} of those are not in the database yet"
        )
    raise typer.Exit(0 if report.sound else 1)


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(help="As in the x-request-id header.")], state_dir: StateOption = None
) -> None:
    """What a request was charged, and why: tokens, prices, transfers. Prints JSON."""
    from musespark.accounts.statements import explain as look_up

    with _database(state_dir) as (database, _):
        print(json.dumps(database.transact(lambda tx: look_up(tx, request_id)), indent=2))


@contextmanager
def _database(state_dir: Path | None) -> Iterator[tuple[Database, Path]]:
    """The database and the state folder; whoever checks the books needs no pepper."""
    from musespark.accounts.database import Database
    from musespark.api.settings import Settings

    settings = Settings.read(state_dir=state_dir)
    database = Database.open(settings.state_dir, settings.database_url)
    try:
        yield database, settings.state_dir
    finally:
        database.close()
