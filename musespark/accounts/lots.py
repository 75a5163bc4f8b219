"""The lots of credit in a wallet: adding one, taking what was spent out of them, ending one.

A wallet's credit consists of lots, each with an end or without one. Spending takes the lot that ends first. Which lot a
request was paid from is not written down at each request: between two events (a lot comes, a lot ends, somebody looks)
the order of the lots is fixed, so working it out at the event gives the same. Credit that is held when its lot ends may
still be spent by that hold; what comes back from it has run out. The organisation's row of balances must be locked.
"""

from __future__ import annotations

from musespark.accounts.transactions import Transaction
from musespark.accounts.transfers import Transfer, exists, write

NEVER = 2**62  # sorts behind every end


def open_books(tx: Transaction, organisation_id: str, currency: str) -> None:
    """An empty set of accounts, unless there is one: its currency stays for good."""
    tx.execute(
        "INSERT INTO balances (organisation_id, currency) VALUES (?, ?) ON CONFLICT (organisation_id) DO NOTHING",
        (organisation_id, currency),
    )


def lock_books(tx: Transaction, organisation_id: str) -> str:
    """Lock the organisation's row of balances; returns its currency."""
    row = tx.row("SELECT currency FROM balances WHERE organisation_id = ?" + tx.for_update, (organisation_id,))
    assert row is not None
    return str(row[0])


def add_lot(
    tx: Transaction, organisation_id: str, id: str, amount: int, expires_at: int | None, source: str, now: float
) -> bool:
    """Credit a wallet; what it owes is paid first. False if this was done before. The row must be locked."""
    if exists(tx, id):
        return False
    wallet, held = wallet_and_held(tx, organisation_id)
    allocate(tx, organisation_id)
    debit, kind = ("funding", "top_up") if source == "top_up" else ("granted", "grant")
    write(tx, organisation_id, [Transfer(id, debit, "wallet", amount, kind)], now)
    # Money held was taken out of the wallet, but it is not spent: together they are what the lots contain.
    remaining = min(amount, max(wallet + held + amount, 0))
    tx.execute(
        "INSERT INTO credit_lots (id, organisation_id, amount, remaining, expires_at, source, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (id, organisation_id, amount, remaining, expires_at, source, int(now)),
    )
    return True


def set_attention(tx: Transaction, organisation_id: str) -> None:
    """Write down when the wallet next needs a look: a lot ends, or a period of the subscription does."""
    tx.execute(
        "UPDATE balances SET attention_at = (SELECT MIN(moment) FROM ("
        "SELECT MIN(expires_at) AS moment FROM credit_lots WHERE organisation_id = ? AND remaining > 0 "
        "UNION ALL SELECT MIN(period_ends_at) FROM subscriptions WHERE organisation_id = ? AND ended_at IS NULL"
        ") AS moments) WHERE organisation_id = ?",
        (organisation_id, organisation_id, organisation_id),
    )


def wallet_and_held(tx: Transaction, organisation_id: str) -> tuple[int, int]:
    row = tx.row("SELECT wallet, held FROM balances WHERE organisation_id = ?", (organisation_id,))
    assert row is not None
    return row[0], row[1]


def lots_of(tx: Transaction, organisation_id: str) -> list[tuple[str, int, int]]:
    """(id, remaining, end) of the lots with something left, the first to end first."""
    rows = tx.rows(
        "SELECT id, remaining, expires_at FROM credit_lots WHERE organisation_id = ? AND remaining > 0",
        (organisation_id,),
    )
    lots = [(row[0], row[1], NEVER if row[2] is None else row[2]) for row in rows]
    return sorted(lots, key=lambda lot: (lot[2], lot[0]))


def allocate(tx: Transaction, organisation_id: str) -> None:
    """Take what was spent since the last time out of the lots, the first to end first."""
    wallet, held = wallet_and_held(tx, organisation_id)
    lots = lots_of(tx, organisation_id)
    spent = sum(lot[1] for lot in lots) - max(wallet + held, 0)
    for id, remaining, _ in lots:
        if spent <= 0:
            break
        taken = min(spent, remaining)
        tx.execute("UPDATE credit_lots SET remaining = remaining - ? WHERE id = ?", (taken, id))
        spent -= taken


def next_expiry(tx: Transaction, organisation_id: str, now: float) -> tuple[str, int] | None:
    """The first lot that has ended and has something in the wallet, not only in holds."""
    _, held = wallet_and_held(tx, organisation_id)
    for id, remaining, end in lots_of(tx, organisation_id):
        if end > now:
            return None
        if remaining > held:
            return id, end
        held -= remaining  # all of it is held: those holds may still spend it
    return None


def expire_lot(tx: Transaction, organisation_id: str, lot_id: str, now: float) -> None:
    wallet, held = wallet_and_held(tx, organisation_id)
    before = 0
    for id, remaining, _ in lots_of(tx, organisation_id):
        if id == lot_id:
            ended = min(remaining - max(held - before, 0), max(wallet, 0))
            break
        before += remaining
    else:
        raise AssertionError(lot_id)
    assert ended > 0, (lot_id, wallet, held)
    # What was left names the transfer: a lot can end in parts, as holds give back, and has less left each time.
    transfer = Transfer(f"{lot_id}/end{remaining}", "wallet", "expired", ended, "credit_expiry")
    write(tx, organisation_id, [transfer], now)
    tx.execute("UPDATE credit_lots SET remaining = remaining - ? WHERE id = ?", (ended, lot_id))
