"""What the commands about accounts share: the state folder, tables and moments in time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from musespark.accounts.accounts import Accounts

StateOption = Annotated[
    Path | None, typer.Option(help="Folder of the database; MUSESPARK_STATE_DIR or the user's data folder if left out.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON; times are UTC seconds since 1970.")]


def open_accounts(state_dir: Path | None) -> Accounts:
    from musespark.accounts.accounts import Accounts
    from musespark.api.settings import Settings

    settings = Settings.read(state_dir=state_dir)
    return Accounts.open(settings.state_dir, settings.database_url)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need; an id is never cut, whatever the terminal's width."""
    table = [tuple(header), *(tuple(cell.replace("\n", " ") for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(items: Sequence[Any]) -> None:
    """Dataclasses as one JSON list."""
    print(json.dumps([asdict(item) for item in items]))


def shown(seconds: int | None) -> str:
    """A moment for a table, in UTC."""
    return "–" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def moment(text: str) -> int:
    """UTC seconds of `2026-12-01` or `2026-12-01T09:00`, UTC unless an offset is written. For typer's `parser`."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no date; write it like 2026-12-01 or 2026-12-01T09:00Z") from None
    return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())
