"""Subscriptions: an organisation on a plan, period by period.

A period is a month from the subscription's start, in UTC: the k-th ends k months after the start, on the same day and
time, or on the month's last day where there is no such day. Each period charges the fee to the receivable account,
brings the included credit as a lot that ends with it, and moves what the period before it owed beyond its credit from
the wallet to the receivable account. Ids are derived from the subscription and the period's number, so a period begins
once. Whoever looks at the wallet first after a period's end begins the next one (credits.attend).
"""

from __future__ import annotations

import calendar
import datetime
import time

from musespark.accounts import lots
from musespark.accounts.database import Database
from musespark.accounts.plans import NO_PLAN, Plan, read_plan
from musespark.accounts.transactions import Transaction
from musespark.accounts.transfers import Transfer, write
from musespark.errors import InvalidRequest, NotFound, PlanRefused

DAY_S = 86_400


def month_after(start: int, months: int) -> int:
    """`months` calendar months after `start`, in UTC seconds; the 31st becomes a shorter month's last day."""
    first = datetime.datetime.fromtimestamp(start, datetime.UTC)
    years, month = divmod(first.month - 1 + months, 12)
    year, month = first.year + years, month + 1
    day = min(first.day, calendar.monthrange(year, month)[1])
    return int(first.replace(year=year, month=month, day=day).timestamp())


def subscribe(database: Database, organisation_id: str, plan_id: str, *, now: float | None = None) -> Plan:
    """Move an organisation to the newest version of a plan, at once. The old plan's unused part is credited.

    The fee of the old period is credited by the lesser of two shares: of its time that is left, and of its included
    credit that is left. The new plan begins a period of its own. Raises NotFound, InvalidRequest for another currency,
    and PlanRefused for a second trial.
    """
    at = int(time.time() if now is None else now)

    def change(tx: Transaction) -> Plan:
        if tx.row("SELECT 1 FROM organisations WHERE id = ?", (organisation_id,)) is None:
            raise NotFound(f"there is no organisation {organisation_id[:80]!r}")
        plan = read_plan(tx, plan_id)
        lots.open_books(tx, organisation_id, plan.currency)
        currency = lots.lock_books(tx, organisation_id)
        if currency != plan.currency:
            text = f"the organisation's currency is {currency}, and the plan {plan_id} is in {plan.currency}"
            raise InvalidRequest(text, param="plan")
        if plan.kind == "trial" and tx.row(
            "SELECT 1 FROM subscriptions WHERE organisation_id = ? AND plan_id = ?", (organisation_id, plan_id)
        ):
            raise PlanRefused(f"the organisation has had the trial {plan_id}; a trial is given once")
        _catch_up(tx, organisation_id, at)
        _leave(tx, organisation_id, at)
        _start(tx, organisation_id, plan, at)
        lots.set_attention(tx, organisation_id)
        return plan

    return database.transact(change, durable=True)


def cancel(database: Database, organisation_id: str, *, now: float | None = None) -> None:
    """End the subscription at once, crediting its unused part as `subscribe` does. Without one, nothing happens."""
    at = int(time.time() if now is None else now)

    def change(tx: Transaction) -> None:
        if tx.row("SELECT 1 FROM balances WHERE organisation_id = ?" + tx.for_update, (organisation_id,)) is None:
            return
        _catch_up(tx, organisation_id, at)
        _leave(tx, organisation_id, at)
        lots.set_attention(tx, organisation_id)

    database.transact(change, durable=True)


def plan_of(tx: Transaction, organisation_id: str) -> Plan:
    """The plan that an organisation is on now; NO_PLAN without one."""
    row = tx.row(
        "SELECT plan_id, plan_version FROM subscriptions WHERE organisation_id = ? AND ended_at IS NULL",
        (organisation_id,),
    )
    return NO_PLAN if row is None else read_plan(tx, *row)


def begin_next_period(tx: Transaction, organisation_id: str, until: float) -> bool:
    """Begin the period that is due by `until`, if one is. The row of balances must be locked."""
    row = tx.row(
        "SELECT id, plan_id, plan_version, started_at, periods, period_ends_at FROM subscriptions "
        "WHERE organisation_id = ? AND ended_at IS NULL",
        (organisation_id,),
    )
    if row is None or row[5] > until:
        return False
    id, plan_id, version, started_at, periods, ended_at = row
    plan = read_plan(tx, plan_id, version)
    if plan.trial_days is not None:
        _leave(tx, organisation_id, ended_at)
        if plan.next_plan is not None:
            _start(tx, organisation_id, read_plan(tx, plan.next_plan), ended_at)
        return True
    _begin(tx, organisation_id, id, plan, periods + 1, ended_at, month_after(started_at, periods + 1))
    return True


def _catch_up(tx: Transaction, organisation_id: str, at: int) -> None:
    lots.allocate(tx, organisation_id)
    while begin_next_period(tx, organisation_id, at):
        lots.allocate(tx, organisation_id)


def _start(tx: Transaction, organisation_id: str, plan: Plan, at: int) -> None:
    row = tx.row("SELECT COUNT(*) FROM subscriptions WHERE organisation_id = ?", (organisation_id,))
    id = f"{organisation_id}/sub{(row[0] if row else 0) + 1}"
    ends_at = month_after(at, 1) if plan.trial_days is None else at + plan.trial_days * DAY_S
    tx.execute(
        "INSERT INTO subscriptions (id, organisation_id, plan_id, plan_version, started_at, trial_ends_at, periods, "
        "period_ends_at) VALUES (?, ?, ?, ?, ?, ?, 0, ?)",
        (id, organisation_id, plan.id, plan.version, at, None if plan.trial_days is None else ends_at, ends_at),
    )
    tx.execute(
        "UPDATE balances SET overdraft = ? WHERE organisation_id = ?", (plan.overage_limit_nano, organisation_id)
    )
    _begin(tx, organisation_id, id, plan, 1, at, ends_at)


def _begin(
    tx: Transaction, organisation_id: str, id: str, plan: Plan, number: int, starts_at: int, ends_at: int
) -> None:
    overage = _bill_overage(tx, organisation_id, f"{id}/overage{number - 1}", starts_at)
    if plan.monthly_fee_nano:
        fee = Transfer(f"{id}/fee{number}", "receivable", "revenue", plan.monthly_fee_nano, "fee")
        write(tx, organisation_id, [fee], starts_at)
    if plan.included_nano:
        lot_id = f"{id}/included{number}"
        lots.add_lot(tx, organisation_id, lot_id, plan.included_nano, ends_at, "included", starts_at)
    tx.execute(
        "INSERT INTO subscription_periods (subscription_id, number, starts_at, ends_at, fee, included, overage) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (id, number, starts_at, ends_at, plan.monthly_fee_nano, plan.included_nano, overage),
    )
    tx.execute("UPDATE subscriptions SET periods = ?, period_ends_at = ? WHERE id = ?", (number, ends_at, id))


def _bill_overage(tx: Transaction, organisation_id: str, transfer_id: str, at: int) -> int:
    """Move what was spent beyond credit to the receivable account. Money still held is not spent."""
    wallet, held = lots.wallet_and_held(tx, organisation_id)
    owed = max(-(wallet + held), 0)
    if owed:
        write(tx, organisation_id, [Transfer(transfer_id, "receivable", "wallet", owed, "overage")], at)
    return owed


def _leave(tx: Transaction, organisation_id: str, at: int) -> None:
    """End the current subscription: credit the unused part of its fee, end its included credit, bill its overage."""
    row = tx.row(
        "SELECT s.id, s.periods, p.starts_at, p.ends_at, p.fee, p.included FROM subscriptions s "
        "JOIN subscription_periods p ON p.subscription_id = s.id AND p.number = s.periods "
        "WHERE s.organisation_id = ? AND s.ended_at IS NULL",
        (organisation_id,),
    )
    if row is None:
        return
    id, number, starts_at, ends_at, fee, included = row
    lot_id = f"{id}/included{number}"
    lot = tx.row("SELECT remaining FROM credit_lots WHERE id = ?", (lot_id,))
    credit = fee * max(ends_at - at, 0) // (ends_at - starts_at)
    if included and lot is not None:
        credit = min(credit, fee * lot[0] // included)
        tx.execute("UPDATE credit_lots SET expires_at = ? WHERE id = ? AND expires_at > ?", (at, lot_id, at))
    if credit:
        back = Transfer(f"{id}/fee_credit{number}", "revenue", "receivable", credit, "fee_credit")
        write(tx, organisation_id, [back], at)
    _bill_overage(tx, organisation_id, f"{id}/overage{number}", at)
    tx.execute("UPDATE subscriptions SET ended_at = ? WHERE id = ?", (at, id))
    tx.execute("UPDATE balances SET overdraft = 0 WHERE organisation_id = ?", (organisation_id,))
