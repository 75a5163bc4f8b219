"""The table of `musespark keys list`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from musespark.accounts.keys import Key


def print_keys(keys: Sequence[Key]) -> None:
    table = Table("id", "name", "key", "created (UTC)", "last used", "expires", "revoked", box=None)
    for key in keys:
        times = (key.created_at, key.last_used_at, key.expires_at, key.revoked_at)
        table.add_row(key.id, key.name, f"{key.prefix}…", *(_moment(seconds) for seconds in times))
    Console().print(table)


def _moment(seconds: int | None) -> str:
    return "–" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
