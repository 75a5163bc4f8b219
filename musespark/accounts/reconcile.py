"""Proof that the books agree: every figure of the ledger computed a second way, and compared with the engine's records.

Balances are added up from transfers, holds and monthly counters from usage records, amounts from tokens and the price
list, and the journal (what the engine said each request used) is compared record by record. A sound ledger gives no
finding and a difference of 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from musespark.accounts.database import Database
from musespark.accounts.invoices import invoice_lines, month_bounds
from musespark.accounts.journal import Position, owners, read_from
from musespark.accounts.lines import Lines
from musespark.accounts.tables.ledger import ACCOUNTS
from musespark.accounts.tables.prices import PRICE_UNITS
from musespark.accounts.transactions import Transaction

MOST_FINDINGS = 1000  # in one report; the difference counts all


@dataclass(frozen=True, slots=True)
class Finding:
    """`expected` is the figure computed the second way, `found` what the ledger has."""

    check: str
    what: str
    expected: int
    found: int


@dataclass(slots=True)
class Report:
    holds: int = 0
    usage_records: int = 0
    transfers: int = 0
    invoices: int = 0  # months of organisations
    engine_records: int = 0
    pending: int = 0  # engine records that the database does not have yet, as in an outage
    damaged: int = 0  # lines of the journal that can't be read
    difference: int = 0  # the sum of what all findings are off by, in nano-units or tokens
    findings: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.findings and not self.damaged

    def add(self, check: str, what: str, expected: int, found: int) -> None:
        self.difference += abs(int(expected) - int(found))
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(check, what, int(expected), int(found)))


def verify(database: Database, journal_root: Path | None = None) -> Report:
    """Check everything in one transaction, which sees one moment of the database."""
    # The journal first: what is in it and not yet in the database is then surely pending, not lost.
    engine = dict(_engine_records(journal_root)) if journal_root is not None and journal_root.exists() else {}
    report = Report()
    report.damaged = engine.pop("", {}).get("damaged", 0)
    report.engine_records = len(engine)

    def work(tx: Transaction) -> None:
        if tx.dialect == "postgresql":
            tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        for name in ("holds", "usage_records", "transfers"):
            row = tx.row(f"SELECT COUNT(*) FROM {name}")
            setattr(report, name, row[0] if row else 0)
        for check in (_balances, _holds, _amounts, _billed, _spending, _lots, _invoices):
            check(tx, report)
        _compare(tx, engine, report)

    database.transact(work)
    return report


def _balances(tx: Transaction, report: Report) -> None:
    """Each account is the sum of its transfers, and an organisation's accounts sum to zero."""
    expected: dict[tuple[str, str], int] = {}
    for side, sign in (("credit", 1), ("debit", -1)):
        query = f"SELECT organisation_id, {side}, SUM(amount) FROM transfers GROUP BY organisation_id, {side}"
        for organisation_id, account, amount in tx.rows(query):
            key = (organisation_id, account)
            expected[key] = expected.get(key, 0) + sign * int(amount)
    for organisation_id, *found in tx.rows(f"SELECT organisation_id, {', '.join(ACCOUNTS)} FROM balances"):
        for account, value in zip(ACCOUNTS, found, strict=True):
            wanted = expected.get((organisation_id, account), 0)
            if wanted != value:
                report.add("balance is the sum of its transfers", f"{organisation_id} {account}", wanted, value)
        if sum(found):
            report.add("debits are credits", organisation_id, 0, sum(found))


def _holds(tx: Transaction, report: Report) -> None:
    """What a hold has is what its transfers put there; a resolved one has nothing and ended once, an open one not."""
    rows = tx.rows(
        "SELECT h.id, h.state, h.held, COALESCE(SUM(CASE WHEN t.credit = 'held' THEN t.amount "
        "WHEN t.debit = 'held' THEN -t.amount ELSE 0 END), 0), "
        "COALESCE(SUM(CASE WHEN t.id = h.id || '/end' THEN 1 ELSE 0 END), 0) "
        "FROM holds h LEFT JOIN transfers t ON t.hold_id = h.id GROUP BY h.id, h.state, h.held"
    )
    for id, state, held, moved, ends in rows:
        if held != moved:
            report.add("a hold has what its transfers put there", id, moved, held)
        if ends != (state != "open"):
            report.add("a hold is resolved once", f"{id} is {state}", int(state != "open"), ends)
    rows = tx.rows(
        "SELECT b.organisation_id, b.held, COALESCE(SUM(h.held), 0) FROM balances b LEFT JOIN holds h "
        "ON h.organisation_id = b.organisation_id AND h.state = 'open' GROUP BY b.organisation_id, b.held"
    )
    for organisation_id, held, expected in rows:
        if held != expected:
            report.add("the held account is the open holds", organisation_id, int(expected), held)


def _amounts(tx: Transaction, report: Report) -> None:
    """Lines partition the tokens, the amount is tokens times prices, and the prices are those of the price list."""
    counts = " + ".join(f"u.{unit}" for unit in PRICE_UNITS)
    cost = " + ".join(f"u.{unit} * u.price_{unit}" for unit in PRICE_UNITS)
    listed = " + ".join(f"u.{unit} * COALESCE(p.{unit}, 0)" for unit in PRICE_UNITS)
    fee = "CASE WHEN u.part = 0 THEN COALESCE(p.request_fee, 0) ELSE 0 END"
    rows = tx.rows(
        f"SELECT u.hold_id, u.total_tokens, {counts}, u.amount, {cost} + u.request_fee, {listed} + {fee} "
        "FROM usage_records u LEFT JOIN price_versions p ON p.model = u.model AND p.version = u.price_version "
        f"WHERE u.total_tokens <> {counts} OR u.amount <> {cost} + u.request_fee OR u.amount <> {listed} + {fee}"
    )
    for id, total, parts, amount, computed, rated in rows:
        if total != parts:
            report.add("lines partition the tokens", id, parts, total)
        if amount != computed:
            report.add("the amount is tokens times prices", id, computed, amount)
        elif amount != rated:
            report.add("the prices are the price list's", id, rated, amount)


def _billed(tx: Transaction, report: Report) -> None:
    """A request's usage is what moved to revenue for it: from its hold or the wallet, or written off."""
    moved: dict[str, tuple[int, int]] = {}
    for id, billed, written_off in tx.rows(
        "SELECT hold_id, SUM(CASE WHEN debit = 'written_off' THEN 0 ELSE amount END), "
        "SUM(CASE WHEN debit = 'written_off' THEN amount ELSE 0 END) "
        "FROM transfers WHERE hold_id IS NOT NULL AND credit = 'revenue' GROUP BY hold_id"
    ):
        moved[id] = (int(billed), int(written_off))
    for id, billed, written_off in tx.rows(
        "SELECT hold_id, SUM(billed), SUM(written_off) FROM usage_records GROUP BY hold_id"
    ):
        expected = moved.pop(id, (0, 0))
        if expected != (billed, written_off):
            report.add("usage is what moved to revenue", id, sum(expected), int(billed) + int(written_off))
    for id, (billed, written_off) in moved.items():
        if billed or written_off:
            report.add("revenue has a usage record", id, 0, billed + written_off)
    for (id,) in tx.rows(
        "SELECT h.id FROM holds h LEFT JOIN usage_records u ON u.hold_id = h.id "
        "WHERE h.state = 'posted' AND u.hold_id IS NULL"
    ):
        report.add("a posted hold has a usage record", id, 1, 0)


def _spending(tx: Transaction, report: Report) -> None:
    """The monthly counters of organisations, projects and keys are the sums of their requests."""
    expected: dict[tuple[str, str], list[int]] = {}
    for scope in ("organisation_id", "project_id", "key_id"):
        for index, query in enumerate(
            (
                f"SELECT {scope}, period, SUM(billed) FROM usage_records GROUP BY {scope}, period",
                f"SELECT {scope}, period, SUM(held) FROM holds WHERE state = 'open' GROUP BY {scope}, period",
            )
        ):
            for id, period, amount in tx.rows(query):
                expected.setdefault((id, period), [0, 0])[index] += int(amount)
    for id, period, posted, held in tx.rows("SELECT scope_id, period, posted, held FROM spending"):
        wanted = expected.pop((id, period), [0, 0])
        for name, value, found in zip(("posted", "held"), wanted, (posted, held), strict=True):
            if value != found:
                report.add(f"spending {name} is the sum of the requests", f"{id} {period}", value, found)
    for (id, period), (posted, held) in expected.items():
        if posted or held:
            report.add("spending is counted", f"{id} {period}", posted + held, 0)


def _lots(tx: Transaction, report: Report) -> None:
    """Credit lots hold at least what the wallet has: what was spent since is taken out of them later."""
    rows = tx.rows(
        "SELECT b.organisation_id, b.wallet + b.held, COALESCE(SUM(l.remaining), 0) FROM balances b "
        "LEFT JOIN credit_lots l ON l.organisation_id = b.organisation_id "
        "GROUP BY b.organisation_id, b.wallet, b.held"
    )
    for organisation_id, credit, remaining in rows:
        if remaining < credit:
            report.add("credit lots hold what the wallet has", organisation_id, credit, int(remaining))


def _invoices(tx: Transaction, report: Report) -> None:
    """The total of each month's invoice is what was earned in it, less what was written off."""
    earned: dict[tuple[str, str], int] = {}
    for organisation_id, amount, created_at in tx.rows(
        "SELECT organisation_id, CASE WHEN credit = 'revenue' THEN amount ELSE -amount END "
        "- CASE WHEN debit = 'written_off' THEN amount ELSE 0 END, created_at FROM transfers "
        "WHERE credit = 'revenue' OR debit = 'revenue'"
    ):
        key = (organisation_id, datetime.fromtimestamp(created_at, UTC).strftime("%Y-%m"))
        earned[key] = earned.get(key, 0) + amount
    report.invoices = len(earned)
    for (organisation_id, period), amount in earned.items():
        lines = invoice_lines(tx, organisation_id, *month_bounds(period))
        total = sum(line.amount_nano for line in lines)
        if total != amount:
            report.add("the invoice is what was earned", f"{organisation_id}-{period}", amount, total)


def _engine_records(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The last record of each hold, over all processes; under "" how many lines can't be read."""
    damaged = 0
    for folder in owners(root):
        for _, record in read_from(folder, Position(0, 0)):
            if record is None:
                damaged += 1
            else:
                yield record["hold"], record
    yield "", {"damaged": damaged}


def _compare(tx: Transaction, engine: dict[str, dict[str, Any]], report: Report) -> None:
    if not engine:
        return
    sums = ", ".join(f"COALESCE(SUM(u.{unit}), 0)" for unit in PRICE_UNITS)
    rows = tx.rows(
        f"SELECT h.id, h.state, {sums} FROM holds h LEFT JOIN usage_records u ON u.hold_id = h.id "
        "GROUP BY h.id, h.state"
    )
    ledger = {row[0]: (row[1], Lines(*(int(count) for count in row[2:]))) for row in rows}
    for id, record in engine.items():
        state, found = ledger.get(id, ("missing", Lines()))
        used = Lines(*record["lines"]) if record["kind"] == "usage" else Lines()
        if state in ("open", "missing"):
            report.pending += record["kind"] == "usage" or state == "open"
        elif used != found:
            for unit, expected, count in zip(PRICE_UNITS, used.counts, found.counts, strict=True):
                if expected != count:
                    report.add("the ledger has the engine's tokens", f"{id} {unit}", expected, count)
