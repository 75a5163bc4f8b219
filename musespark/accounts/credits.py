"""Prepaid credit: what comes into a wallet, and what time makes of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from musespark.accounts import lots, subscriptions
from musespark.accounts.database import Database
from musespark.accounts.prices import DEFAULT_CURRENCY, check_amount, check_currency, check_time
from musespark.accounts.tables.prices import MAX_AMOUNT
from musespark.accounts.transactions import Transaction
from musespark.errors import InvalidRequest, NotFound


@dataclass(frozen=True, slots=True)
class Credit:
    id: str
    remaining_nano: int
    expires_at: int | None
    source: str


def top_up(
    database: Database,
    organisation_id: str,
    amount: int,
    reference: str,
    *,
    expires_at: int | None = None,
    source: Literal["top_up", "grant"] = "top_up",
    currency: str = DEFAULT_CURRENCY,
    now: float | None = None,
) -> bool:
    """Add credit: paid (`top_up`) or given away (`grant`). `reference` says what for, such as a payment's number.

    Doing it again with the same reference does nothing and returns False. Waits for the disk. Raises InvalidRequest
    naming the field, or NotFound for an unknown organisation.
    """
    at = time.time() if now is None else now
    check_amount("amount", amount, MAX_AMOUNT, "nano-units")
    check_currency(currency)
    if amount == 0:
        raise InvalidRequest("amount is 0; there is nothing to add", param="amount")
    if not 1 <= len(reference) <= 64 or not reference.isprintable():
        raise InvalidRequest("reference has 1 to 64 printable characters", param="reference")
    if expires_at is not None:
        check_time("expires_at", expires_at)
        if expires_at <= at:
            raise InvalidRequest(f"expires_at {expires_at} lies in the past (it is {int(at)} now)", param="expires_at")

    def add(tx: Transaction) -> bool:
        if tx.row("SELECT 1 FROM organisations WHERE id = ?", (organisation_id,)) is None:
            raise NotFound(f"there is no organisation {organisation_id[:80]!r}")
        lots.open_books(tx, organisation_id, currency)
        theirs = lots.lock_books(tx, organisation_id)
        if theirs != currency:
            raise InvalidRequest(f"the organisation's currency is {theirs}, not {currency}", param="currency")
        attend(tx, organisation_id, at)
        id = f"{organisation_id}/{source}/{reference}"
        added = lots.add_lot(tx, organisation_id, id, amount, expires_at, source, at)
        lots.set_attention(tx, organisation_id)
        return added

    return database.transact(add, durable=True)


def credits_of(tx: Transaction, organisation_id: str, now: float) -> list[Credit]:
    """The lots that have something left, the first to end first."""
    attend(tx, organisation_id, now)
    rows = tx.rows(
        "SELECT id, remaining, expires_at, source FROM credit_lots WHERE organisation_id = ? AND remaining > 0",
        (organisation_id,),
    )
    return [Credit(*row) for row in sorted(rows, key=lambda row: (lots.NEVER if row[2] is None else row[2], row[0]))]


def attend(tx: Transaction, organisation_id: str, now: float) -> None:
    """Do what time has made due: credit that ended leaves the wallet, periods of the subscription begin.

    In the order in which they fell due, so that it does not matter how late this runs.
    """
    lots.lock_books(tx, organisation_id)
    lots.allocate(tx, organisation_id)
    while True:
        due = lots.next_expiry(tx, organisation_id, now)
        if not subscriptions.begin_next_period(tx, organisation_id, now if due is None else due[1]):
            if due is None:
                break
            lots.expire_lot(tx, organisation_id, due[0], now)
        lots.allocate(tx, organisation_id)
    lots.set_attention(tx, organisation_id)
