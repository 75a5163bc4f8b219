"""What other systems are to be told of usage: written with the settlement, delivered afterwards, at least once.

An event's id is derived from the hold that it is about, so whoever gets it twice can tell. Rows are claimed for
`LEASE_S`, by whichever server process comes first, deleted when they are delivered, and come back with a growing pause
when they are not; after `GIVE_UP_S` they are given up, for the receiver would not take them any more (Stripe: 35 days).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import orjson

from musespark.accounts.database import Database
from musespark.accounts.settlement import SettledRecord
from musespark.accounts.tables.prices import PRICE_UNITS
from musespark.accounts.transactions import Transaction

LEASE_S = 60
FIRST_PAUSE_S, LAST_PAUSE_S = 1, 3600
GIVE_UP_S = 35 * 86_400
LONGEST_ERROR = 200


@dataclass(frozen=True, slots=True)
class Event:
    """One usage record. `data` has its tokens by kind, its amount, whose it is and when."""

    id: str
    organisation_id: str
    data: dict[str, Any]
    created_at: int
    attempts: int  # this one included


def write(tx: Transaction, record: SettledRecord) -> None:
    """Add the event of a usage record, in the transaction that writes it."""
    data = {
        "request_id": record.request_id,
        "attempt": record.attempt,
        "part": record.part,
        "organisation_id": record.organisation_id,
        "project_id": record.project_id,
        "key_id": record.key_id,
        "model": record.model,
        "tokens": dict(zip(PRICE_UNITS, record.lines.counts, strict=True)),
        "amount_nano": record.amount_nano,
        "outcome": record.outcome,
        "opened_at": record.opened_at,
        "settled_at": record.settled_at,
    }
    tx.execute(
        "INSERT INTO outbox (id, organisation_id, data, created_at, attempts, due_at) VALUES (?, ?, ?, ?, 0, ?) "
        "ON CONFLICT (id) DO NOTHING",
        (
            f"{record.hold_id}/{record.part}",
            record.organisation_id,
            orjson.dumps(data).decode(),
            record.settled_at,
            record.settled_at,
        ),
    )


def pause_s(attempts: int) -> int:
    """How long to wait after this many attempts: 1 s, 2 s, 4 s … up to an hour."""
    return int(min(FIRST_PAUSE_S * 2 ** min(attempts - 1, 30), LAST_PAUSE_S))


class Outbox:
    """Synchronous and thread-safe. `now` is the wall clock."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, most: int, now: float | None = None) -> list[Event]:
        """Up to `most` events that are due, for this process alone until their lease ends."""
        at = int(time.time() if now is None else now)

        def work(tx: Transaction) -> list[Event]:
            lock = " FOR UPDATE SKIP LOCKED" if tx.dialect == "postgresql" else ""
            rows = tx.rows(
                "SELECT id, organisation_id, data, created_at, attempts FROM outbox WHERE due_at <= ? "
                f"ORDER BY due_at, id LIMIT {int(most)}{lock}",
                (at,),
            )
            for row in rows:
                tx.execute("UPDATE outbox SET attempts = attempts + 1, due_at = ? WHERE id = ?", (at + LEASE_S, row[0]))
            return [Event(row[0], row[1], orjson.loads(row[2]), row[3], row[4] + 1) for row in rows]

        return self._database.transact(work)

    def delivered(self, event: Event) -> None:
        self._database.transact(lambda tx: tx.execute("DELETE FROM outbox WHERE id = ?", (event.id,)))

    def failed(self, event: Event, error: str, now: float | None = None) -> bool:
        """Try again later. False if it was given up."""
        at = int(time.time() if now is None else now)
        if at - event.created_at >= GIVE_UP_S:
            self.delivered(event)
            return False
        values = (at + pause_s(event.attempts), error[:LONGEST_ERROR], event.id)
        self._database.transact(
            lambda tx: tx.execute("UPDATE outbox SET due_at = ?, last_error = ? WHERE id = ?", values)
        )
        return True

    def pending(self) -> int:
        row = self._database.transact(lambda tx: tx.row("SELECT COUNT(*) FROM outbox"))
        assert row is not None
        return int(row[0])

    def customer_of(self, organisation_id: str) -> str | None:
        """The organisation's customer at Stripe."""
        query = "SELECT customer_id FROM stripe_customers WHERE organisation_id = ?"
        row = self._database.transact(lambda tx: tx.row(query, (organisation_id,)))
        return None if row is None else str(row[0])


def set_stripe_customer(database: Database, organisation_id: str, customer_id: str) -> None:
    database.transact(
        lambda tx: tx.execute(
            "INSERT INTO stripe_customers (organisation_id, customer_id) VALUES (?, ?) "
            "ON CONFLICT (organisation_id) DO UPDATE SET customer_id = excluded.customer_id",
            (organisation_id, customer_id),
        )
    )
