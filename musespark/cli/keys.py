"""What `musespark keys list` prints: a table that never cuts an id, or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from musespark.accounts.keys import Key

HEADER = ("id", "name", "key", "created (UTC)", "last used", "expires", "revoked")


def print_keys(keys: Sequence[Key], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(key) for key in keys]))
        return
    rows = [HEADER, *(_row(key) for key in keys)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(key: Key) -> tuple[str, ...]:
    times = (key.created_at, key.last_used_at, key.expires_at, key.revoked_at)
    return (key.id, key.name, f"{key.prefix}…", *(_moment(seconds) for seconds in times))


def _moment(seconds: int | None) -> str:
    return "–" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
