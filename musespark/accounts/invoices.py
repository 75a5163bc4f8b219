"""Invoices: what an organisation was charged in a calendar month (UTC), computed from the ledger each time.

Nothing is stored, so an invoice can't differ from the books; a request belongs to the month in which it was settled, so
a month that is over does not change. Amounts are integer nano-units and are never rounded.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from musespark.accounts.database import Database
from musespark.accounts.tables.prices import PRICE_UNITS
from musespark.accounts.transactions import Transaction
from musespark.errors import InvalidRequest, NotFound

LineKind = Literal["tokens", "request_fee", "not_charged", "plan_fee", "plan_credit"]
USAGE_COLUMNS = (
    "request_id", "hold_id", "part", "settled_at", "project_id", "key_id", "model", "price_version", *PRICE_UNITS,
    *(f"price_{unit}" for unit in PRICE_UNITS), "request_fee", "amount", "billed", "written_off", "outcome",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """`amount_nano` is `quantity` times `nano_each`; credits and what was written off are negative."""

    kind: LineKind
    what: str  # a model and its price version, or a plan's period
    unit: str  # of tokens which kind; else "request", "month"
    quantity: int
    nano_each: int
    amount_nano: int


@dataclass(frozen=True, slots=True)
class Invoice:
    """`account` leads from what was owed at the start of the month to what is owed at its end: (kind, nano).

    What is used is paid from credit first; only fees and what exceeds credit are owed. `final`: the month is over.
    """

    number: str
    organisation_id: str
    organisation: str
    currency: str
    period: str
    starts_at: int
    ends_at: int
    final: bool
    lines: tuple[InvoiceLine, ...]
    total_nano: int
    owed_before_nano: int
    account: tuple[tuple[str, int], ...]
    owed_nano: int


def make_invoice(database: Database, organisation_id: str, period: str, *, now: float | None = None) -> Invoice:
    """The invoice of a month such as "2026-11". Raises InvalidRequest for another text, NotFound without books."""
    starts_at, ends_at = month_bounds(period)
    at = time.time() if now is None else now

    def read(tx: Transaction) -> Invoice:
        row = tx.row(
            "SELECT o.name, b.currency FROM organisations o JOIN balances b ON b.organisation_id = o.id WHERE o.id = ?",
            (organisation_id,),
        )
        if row is None:
            raise NotFound(
                f"the organisation {organisation_id[:80]!r} has no books: it has never used or paid anything"
            )
        lines = invoice_lines(tx, organisation_id, starts_at, ends_at)
        before = sum(amount for _, amount in _owed_by_kind(tx, organisation_id, 0, starts_at))
        account = _owed_by_kind(tx, organisation_id, starts_at, ends_at)
        return Invoice(
            number=f"{organisation_id}-{period}",
            organisation_id=organisation_id,
            organisation=row[0],
            currency=row[1],
            period=period,
            starts_at=starts_at,
            ends_at=ends_at,
            final=at >= ends_at,
            lines=lines,
            total_nano=sum(line.amount_nano for line in lines),
            owed_before_nano=before,
            account=account,
            owed_nano=before + sum(amount for _, amount in account),
        )

    return database.transact(read)


def month_bounds(period: str) -> tuple[int, int]:
    """[start, end) of a month in UTC seconds. Raises InvalidRequest."""
    if not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", period) or not "1970" <= period[:4] <= "9998":
        raise InvalidRequest(f"{period[:40]!r} is no month; write it like 2026-11", param="period")
    year, month = int(period[:4]), int(period[5:])
    after = (year + 1, 1) if month == 12 else (year, month + 1)
    start, end = (int(datetime(*first, 1, tzinfo=UTC).timestamp()) for first in ((year, month), after))
    return start, end


def invoice_lines(tx: Transaction, organisation_id: str, starts_at: int, ends_at: int) -> tuple[InvoiceLine, ...]:
    """Tokens by model, price version and kind; request fees; what was not charged; fees of plans."""
    within = (organisation_id, starts_at, ends_at)
    sums = ", ".join(f"SUM({unit})" for unit in PRICE_UNITS)
    prices = ", ".join(f"price_{unit}" for unit in PRICE_UNITS)
    lines: list[InvoiceLine] = []
    rows = tx.rows(
        f"SELECT model, price_version, {prices}, {sums} FROM usage_records WHERE organisation_id = ? "
        f"AND settled_at >= ? AND settled_at < ? GROUP BY model, price_version, {prices} "
        f"ORDER BY model, price_version, {prices}",
        within,
    )
    for model, version, *numbers in rows:
        each, counts = numbers[: len(PRICE_UNITS)], numbers[len(PRICE_UNITS) :]
        for unit, nano, count in zip(PRICE_UNITS, each, counts, strict=True):
            if count:
                what = f"{model}, prices of version {version}"
                lines.append(InvoiceLine("tokens", what, unit, int(count), nano, int(count) * nano))
    rows = tx.rows(
        "SELECT model, price_version, request_fee, COUNT(*) FROM usage_records WHERE organisation_id = ? "
        "AND settled_at >= ? AND settled_at < ? AND request_fee > 0 GROUP BY model, price_version, request_fee "
        "ORDER BY model, price_version, request_fee",
        within,
    )
    for model, version, fee, count in rows:
        what = f"{model}, prices of version {version}"
        lines.append(InvoiceLine("request_fee", what, "request", int(count), fee, int(count) * fee))
    row = tx.row(
        "SELECT COALESCE(SUM(written_off), 0) FROM usage_records WHERE organisation_id = ? "
        "AND settled_at >= ? AND settled_at < ?",
        within,
    )
    if row is not None and row[0]:
        lines.append(
            InvoiceLine("not_charged", "used beyond a limit, not charged", "total", 1, -int(row[0]), -int(row[0]))
        )
    rows = tx.rows(
        "SELECT id, kind, amount FROM transfers WHERE organisation_id = ? AND created_at >= ? AND created_at < ? "
        "AND kind IN ('fee', 'fee_credit') ORDER BY created_at, id",
        within,
    )
    for id, kind, amount in rows:
        signed = amount if kind == "fee" else -amount
        lines.append(InvoiceLine("plan_fee" if kind == "fee" else "plan_credit", id, "month", 1, signed, signed))
    return tuple(lines)


def usage_rows(database: Database, invoice: Invoice) -> list[dict[str, Any]]:
    """Every usage record of the invoice's month: what a customer needs to compute it again."""
    sql = (
        f"SELECT {', '.join(USAGE_COLUMNS)} FROM usage_records WHERE organisation_id = ? "
        "AND settled_at >= ? AND settled_at < ? ORDER BY settled_at, hold_id, part"
    )
    within = (invoice.organisation_id, invoice.starts_at, invoice.ends_at)
    rows = database.transact(lambda tx: tx.rows(sql, within))
    return [dict(zip(USAGE_COLUMNS, row, strict=True)) for row in rows]


def _owed_by_kind(tx: Transaction, organisation_id: str, start: int, end: int) -> tuple[tuple[str, int], ...]:
    """How much each kind of transfer added to what is owed."""
    rows = tx.rows(
        "SELECT kind, SUM(CASE WHEN debit = 'receivable' THEN amount ELSE -amount END) FROM transfers "
        "WHERE organisation_id = ? AND created_at >= ? AND created_at < ? "
        "AND (debit = 'receivable' OR credit = 'receivable') GROUP BY kind ORDER BY kind",
        (organisation_id, start, end),
    )
    return tuple((kind, int(amount)) for kind, amount in rows)
