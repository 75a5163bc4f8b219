"""A request's end as a record of the journal: everything needed to settle it again, whatever the database knows."""

from __future__ import annotations

from typing import Any

from musespark.accounts.holds import Hold
from musespark.accounts.lines import Lines
from musespark.accounts.prices import PriceSnapshot
from musespark.accounts.purse import Scope


def usage_record(hold: Hold, lines: Lines, outcome: str, now: float) -> dict[str, Any]:
    price = hold.price
    return {
        "kind": "usage",
        "hold": hold.id,
        "request": [hold.request_id, hold.attempt],
        "scope": [*hold.scope.ids, hold.scope.period],
        "price": [price.model, price.version, price.currency, *price.units, price.request_fee, price.effective_from],
        "granted": hold.granted_output,
        "opened_at": hold.opened_at,
        "lines": list(lines.counts),
        "outcome": outcome,
        "at": int(now),
    }


def void_record(hold: Hold, outcome: str, now: float) -> dict[str, Any]:
    return {"kind": "void", "hold": hold.id, "outcome": outcome, "at": int(now)}


def hold_of(record: dict[str, Any]) -> Hold:
    """The hold of a usage record."""
    price = PriceSnapshot(*record["price"])
    request_id, attempt = record["request"]
    scope = Scope(*record["scope"])
    return Hold(record["hold"], request_id, attempt, scope, price, record["granted"], False, record["opened_at"])


def lines_of(record: dict[str, Any]) -> Lines:
    return Lines(*record["lines"])
