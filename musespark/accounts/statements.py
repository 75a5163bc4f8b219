"""What can be asked of the ledger: a charge explained, a balance, a month's spending; and setting caps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from musespark.accounts import credits, subscriptions
from musespark.accounts.credits import Credit
from musespark.accounts.plans import Plan
from musespark.accounts.prices import DEFAULT_CURRENCY, check_amount
from musespark.accounts.tables.prices import MAX_AMOUNT, PRICE_UNITS
from musespark.accounts.transactions import Transaction
from musespark.errors import NotFound


@dataclass(frozen=True, slots=True)
class Balance:
    """`available_nano`: what new requests can hold, overage included. `owed_nano`: to be invoiced so far."""

    organisation_id: str
    currency: str
    available_nano: int
    held_nano: int
    owed_nano: int
    credits: list[Credit]


@dataclass(frozen=True, slots=True)
class Spending:
    """A month in UTC of an organisation, project or key."""

    scope_id: str
    period: str
    posted_nano: int
    held_nano: int
    cap_nano: int | None


def current_plan(tx: Transaction, organisation_id: str, now: float) -> Plan:
    row = tx.row("SELECT attention_at FROM balances WHERE organisation_id = ?", (organisation_id,))
    if row is not None and row[0] is not None and row[0] <= now:
        credits.attend(tx, organisation_id, now)
    return subscriptions.plan_of(tx, organisation_id)


def balance(tx: Transaction, organisation_id: str, now: float) -> Balance:
    if tx.row("SELECT 1 FROM balances WHERE organisation_id = ?", (organisation_id,)) is None:
        return Balance(organisation_id, DEFAULT_CURRENCY, 0, 0, 0, [])
    lots = credits.credits_of(tx, organisation_id, now)
    row = tx.row(
        "SELECT currency, wallet, overdraft, held, receivable FROM balances WHERE organisation_id = ?",
        (organisation_id,),
    )
    assert row is not None
    currency, wallet, overdraft, held, receivable = row
    owed = -receivable + max(-(wallet + held), 0)
    return Balance(organisation_id, currency, max(wallet + overdraft, 0), held, owed, lots)


def spending(tx: Transaction, scope_id: str, period: str) -> Spending:
    row = tx.row("SELECT posted, held FROM spending WHERE scope_id = ? AND period = ?", (scope_id, period))
    cap = tx.row("SELECT monthly FROM caps WHERE scope_id = ?", (scope_id,))
    posted, held = row or (0, 0)
    return Spending(scope_id, period, posted, held, cap[0] if cap else None)


def set_cap(tx: Transaction, scope_id: str, monthly_nano: int | None, now: float) -> None:
    """Set or remove a monthly cap. Raises NotFound for an unknown scope, InvalidRequest for an unusable amount."""
    table = {"org": "organisations", "proj": "projects", "key": "keys"}.get(scope_id.partition("_")[0])
    if table is None or tx.row(f"SELECT 1 FROM {table} WHERE id = ?", (scope_id,)) is None:
        raise NotFound(f"there is no organisation, project or key {scope_id[:80]!r}")
    if monthly_nano is None:
        tx.execute("DELETE FROM caps WHERE scope_id = ?", (scope_id,))
        return
    check_amount("monthly_nano", monthly_nano, MAX_AMOUNT, "nano-units")
    tx.execute(
        "INSERT INTO caps (scope_id, monthly, changed_at) VALUES (?, ?, ?) ON CONFLICT (scope_id) DO UPDATE SET "
        "monthly = excluded.monthly, changed_at = excluded.changed_at",
        (scope_id, monthly_nano, int(now)),
    )


def explain(tx: Transaction, request_id: str) -> list[dict[str, Any]]:
    """Every attempt of a request: its tokens, prices, what was billed, and the transfers. Raises NotFound."""
    prices = ", ".join(f"h.price_{unit}" for unit in PRICE_UNITS)
    rows = tx.rows(
        "SELECT h.id, h.attempt, h.organisation_id, h.project_id, h.key_id, h.period, h.state, h.outcome, h.model, "
        f"h.price_version, h.held, h.granted_output, h.opened_at, h.resolved_at, b.currency, h.request_fee, {prices} "
        "FROM holds h JOIN balances b ON b.organisation_id = h.organisation_id WHERE h.request_id = ? "
        "ORDER BY h.attempt",
        (request_id,),
    )
    if not rows:
        raise NotFound(f"there is no request {request_id[:80]!r}")
    return [_attempt(tx, request_id, row) for row in rows]


def _attempt(tx: Transaction, request_id: str, row: tuple[Any, ...]) -> dict[str, Any]:
    id, attempt, organisation_id, project_id, key_id, period, state, outcome, model, version = row[:10]
    held, granted, opened_at, resolved_at, currency, fee = row[10:16]
    prices = dict(zip(PRICE_UNITS, row[16:], strict=True))
    counts = ", ".join(f"COALESCE(SUM({unit}), 0)" for unit in PRICE_UNITS)
    used = tx.row(
        f"SELECT {counts}, COALESCE(SUM(amount), 0), COALESCE(SUM(billed), 0), COALESCE(SUM(written_off), 0), "
        "COALESCE(SUM(request_fee), 0), MAX(settled_at) FROM usage_records WHERE hold_id = ?",
        (id,),
    )
    assert used is not None
    moves = tx.rows(
        "SELECT id, debit, credit, amount, kind, created_at FROM transfers WHERE hold_id = ? ORDER BY created_at, id",
        (id,),
    )
    names = ("id", "debit", "credit", "amount_nano", "kind", "created_at")
    return {
        "request_id": request_id,
        "attempt": attempt,
        "hold_id": id,
        "state": state,
        "outcome": outcome,
        "model": model,
        "price_version": version,
        "prices": prices | {"request_fee": fee},
        "lines": [
            {
                "line": unit,
                "tokens": int(count),
                "nano_per_token": prices[unit],
                "amount_nano": int(count) * prices[unit],
            }
            for unit, count in zip(PRICE_UNITS, used[:5], strict=True)
        ],
        "request_fee_nano": int(used[8]),
        "amount_nano": int(used[5]),
        "billed_nano": int(used[6]),
        "written_off_nano": int(used[7]),
        "held_nano": held,
        "granted_output": granted,
        "currency": currency,
        "organisation_id": organisation_id,
        "project_id": project_id,
        "key_id": key_id,
        "period": period,
        "opened_at": opened_at,
        "settled_at": used[9] if used[9] is not None else resolved_at,
        "transfers": [dict(zip(names, move, strict=True)) for move in moves],
    }
