"""Writing to the ledger: transfers, which move balances by themselves, and the monthly counters beside them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from musespark.accounts.transactions import Transaction

_COLUMNS = "id, organisation_id, debit, credit, amount, kind, hold_id, created_at"


@dataclass(frozen=True, slots=True)
class Transfer:
    """`amount` moves from account `debit` to account `credit`. The id says what for, so that it happens once."""

    id: str
    debit: str
    credit: str
    amount: int
    kind: str


def write(
    tx: Transaction, organisation_id: str, transfers: Sequence[Transfer], now: float, hold_id: str | None = None
) -> None:
    """Insert all, in order. An id that exists breaks the transaction: callers have looked before."""
    if transfers:
        values: list[object] = []
        for t in transfers:
            values += (t.id, organisation_id, t.debit, t.credit, t.amount, t.kind, hold_id, int(now))
        tx.execute(_insert(len(transfers)), values)


def exists(tx: Transaction, transfer_id: str) -> bool:
    return tx.row("SELECT 1 FROM transfers WHERE id = ?", (transfer_id,)) is not None


def count_spending(tx: Transaction, ids: tuple[str, str, str], period: str, held: int, posted: int) -> None:
    """Move the monthly counters of organisation, project and key together."""
    if held or posted:
        tx.execute(
            "UPDATE spending SET held = held + ?, posted = posted + ? WHERE period = ? AND scope_id IN (?, ?, ?)",
            (held, posted, period, *ids),
        )


def begin_spending(tx: Transaction, ids: tuple[str, str, str], period: str, held: int, posted: int) -> None:
    """The same where the month's rows may not exist yet: they do from the first hold on."""
    values: list[object] = []
    for scope_id in ids:
        values += (scope_id, period, held, posted)
    tx.execute(
        "INSERT INTO spending (scope_id, period, held, posted) VALUES (?, ?, ?, ?), (?, ?, ?, ?), (?, ?, ?, ?) "
        "ON CONFLICT (scope_id, period) DO UPDATE SET held = spending.held + excluded.held, "
        "posted = spending.posted + excluded.posted",
        values,
    )


@functools.cache
def _insert(count: int) -> str:
    return f"INSERT INTO transfers ({_COLUMNS}) VALUES " + ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?)"] * count)
