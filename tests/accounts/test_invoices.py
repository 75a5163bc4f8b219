"""Invoices against the books, a customer's own computation, and what a reader sees; on SQLite and PostgreSQL."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from musespark.accounts import subscriptions
from musespark.accounts.invoice_files import as_html, as_pdf, money, write_export
from musespark.accounts.invoices import Invoice, make_invoice, month_bounds, usage_rows
from musespark.accounts.plans import Plan, create_plan
from musespark.accounts.prices import set_price
from musespark.accounts.reconcile import verify
from musespark.errors import InvalidRequest, NotFound
from tests.accounts.books import NOW, OUT, Books, used

DOLLAR = 10**9
NEXT_MONTH = int(datetime(2026, 12, 1, tzinfo=UTC).timestamp())


def at(books: Books, period: str = "2026-11", now: float = NEXT_MONTH) -> Invoice:
    return make_invoice(books.database, "org_1", period, now=now)


def spend(books: Books, request_id: str, output: int, *, now: float = NOW) -> None:
    books.ledger.settle(books.open(request_id, output=output, now=now), used(output), now=now)


def export(books: Books, folder: Path) -> subprocess.CompletedProcess[str]:
    invoice = at(books)
    write_export(invoice, usage_rows(books.database, invoice), folder)
    return check(folder)


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    """As a customer would: their own Python, isolated from this project."""
    script = folder / "verify_invoice.py"
    return subprocess.run([sys.executable, "-I", script, folder], capture_output=True, text=True, check=False)


def test_lines_are_tokens_times_prices_and_the_total_is_what_the_ledger_earned(books: Books) -> None:
    books.credit(DOLLAR)
    spend(books, "req_1", 10)
    spend(books, "req_2", 32)
    invoice = at(books)
    assert [(line.unit, line.quantity, line.amount_nano) for line in invoice.lines] == [
        ("text_in", 200, 200 * 1250),
        ("output", 42, 42 * OUT),
    ]
    assert invoice.total_nano == books.wallet()["revenue"]
    assert (invoice.owed_nano, invoice.account) == (0, ())  # paid from credit


def test_a_new_price_begins_a_line_of_its_own(books: Books) -> None:
    books.credit(DOLLAR)
    spend(books, "req_1", 10)
    books.price = set_price(
        books.database,
        "muse-spark",
        text_in=1250,
        cached_in=150,
        output=2 * OUT,
        request_fee=7,
        now=NOW,
        effective_from=NOW + 1,
    )
    spend(books, "req_2", 10, now=NOW + 5)
    lines = {(line.what, line.unit): line.amount_nano for line in at(books).lines}
    assert lines["muse-spark, prices of version 1", "output"] == 10 * OUT
    assert lines["muse-spark, prices of version 2", "output"] == 20 * OUT
    assert lines["muse-spark, prices of version 2", "request"] == 7


def test_fees_and_use_beyond_credit_are_owed_and_a_changed_plan_gives_its_rest_back(books: Books) -> None:
    for name, fee in (("small", 10), ("large", 30)):
        plan = Plan(name, name=name, monthly_fee_nano=fee * DOLLAR, overage="bill", overage_limit_nano=DOLLAR)
        create_plan(books.database, plan, now=NOW)
    subscriptions.subscribe(books.database, "org_1", "small", now=NOW)
    spend(books, "req_1", 10)
    subscriptions.subscribe(books.database, "org_1", "large", now=NOW + 15 * 86_400)
    november, december = at(books), at(books, "2026-12", now=NOW + 16 * 86_400)
    used_nano = 100 * 1250 + 10 * OUT
    assert november.total_nano == 10 * DOLLAR + used_nano
    assert november.owed_nano == 10 * DOLLAR  # what was used beyond credit is billed when the period ends
    assert december.owed_before_nano == november.owed_nano
    assert {kind for kind, _ in december.account} == {"fee", "fee_credit", "overage"}
    assert -5 * DOLLAR - DOLLAR < dict(december.account)["fee_credit"] < -5 * DOLLAR + DOLLAR  # 15 of 30 days are left
    assert december.owed_nano == -books.wallet()["receivable"]
    assert not december.final
    books.check()


def test_a_request_is_invoiced_in_the_month_in_which_it_was_settled(books: Books) -> None:
    books.credit(DOLLAR)
    hold = books.open("req_1", now=NEXT_MONTH - 1)
    books.ledger.settle(hold, used(3), now=NEXT_MONTH)
    assert at(books).total_nano == 0
    assert at(books, "2026-12").total_nano == 100 * 1250 + 3 * OUT


def test_what_was_not_charged_is_a_line_of_its_own(books: Books) -> None:
    books.credit(100 * 1250 + 64 * OUT)
    hold = books.open("req_1")
    books.ledger.settle(hold, used(64), now=NOW)
    late = books.open("req_2", text_in=0, output=0)
    assert at(books).total_nano == books.wallet()["revenue"] - books.wallet().get("written_off", 0)
    books.ledger.void(late, now=NOW)


def test_a_customer_computes_the_same_with_the_exported_script(books: Books, tmp_path: Path) -> None:
    books.credit(DOLLAR)
    for number in range(7):
        spend(books, f"req_{number}", 5 + number)
    done = export(books, tmp_path / "export")
    assert (done.returncode, done.stdout) == (0, "7 requests, 2 lines; difference 0\n")


@pytest.mark.parametrize("column", ["output", "price_output", "amount", "billed"])
def test_the_script_finds_a_request_that_was_tampered_with(books: Books, tmp_path: Path, column: str) -> None:
    books.credit(DOLLAR)
    spend(books, "req_1", 5)
    export(books, tmp_path)
    with (tmp_path / "usage.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0][column] = str(int(rows[0][column]) + 1)
    with (tmp_path / "usage.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    done = check(tmp_path)
    assert done.returncode == 1
    assert "the invoice says" in done.stdout


@pytest.mark.parametrize("field", ["total_nano", "owed_nano"])
def test_the_script_finds_a_sum_that_was_tampered_with(books: Books, tmp_path: Path, field: str) -> None:
    books.credit(DOLLAR)
    spend(books, "req_1", 5)
    export(books, tmp_path)
    invoice = json.loads((tmp_path / "invoice.json").read_text())
    invoice[field] += 1
    (tmp_path / "invoice.json").write_text(json.dumps(invoice))
    assert check(tmp_path).returncode == 1


def test_verify_compares_invoices_with_the_ledger(books: Books) -> None:
    books.credit(DOLLAR)
    spend(books, "req_1", 5)
    report = verify(books.database)
    assert (report.invoices, report.difference) == (1, 0)

    def plant(tx) -> None:  # type: ignore[no-untyped-def]
        """A charge that no line of an invoice explains."""
        tx.execute(
            "INSERT INTO transfers (id, organisation_id, debit, credit, amount, kind, hold_id, created_at) "
            "VALUES ('planted', 'org_1', 'wallet', 'revenue', 11, 'adjustment', NULL, ?)",
            (NOW,),
        )

    books.database.transact(plant)
    found = [finding for finding in verify(books.database).findings if finding.check.startswith("the invoice")]
    assert [(finding.what, finding.found - finding.expected) for finding in found] == [("org_1-2026-11", -11)]


def test_the_page_escapes_names_and_loads_nothing_from_outside(books: Books) -> None:
    books.credit(DOLLAR)
    books.database.transact(
        lambda tx: tx.execute(
            "UPDATE organisations SET name = ? WHERE id = 'org_1'", ("<script>alert(1)</script> & Söhne",)
        )
    )
    page = as_html(at(books))
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; Söhne" in page
    assert "<script" not in page
    assert "http" not in page


def test_a_pdf_is_one_and_the_same_invoice_gives_the_same_bytes(books: Books) -> None:
    books.credit(DOLLAR)
    spend(books, "req_1", 5)
    first = as_pdf(at(books))
    assert first.startswith(b"%PDF-")
    assert first == as_pdf(at(books))


@pytest.mark.parametrize(
    ("nano", "shown"),
    [
        (0, "0.00"),
        (4250, "0.000004250"),
        (1_250_000_000, "1.25"),
        (-DOLLAR, "-1.00"),
        (1234 * DOLLAR + 1, "1,234.000000001"),
    ],
)
def test_money_is_shown_exactly(nano: int, shown: str) -> None:
    assert money(nano) == shown


@pytest.mark.parametrize(
    "period", ["2026", "2026-13", "2026-00", "26-01", "2026-1", "2026-11-01", "١٩٩٩-01", "0000-01", "9999-12"]
)
def test_another_text_is_no_month(period: str) -> None:
    with pytest.raises(InvalidRequest, match="is no month"):
        month_bounds(period)


def test_months_are_utc_and_december_ends_a_year() -> None:
    assert month_bounds("2026-12") == (NEXT_MONTH, int(datetime(2027, 1, 1, tzinfo=UTC).timestamp()))
    assert month_bounds("2024-02")[1] - month_bounds("2024-02")[0] == 29 * 86_400


def test_an_organisation_without_books_has_no_invoice(books: Books) -> None:
    with pytest.raises(NotFound, match="has no books"):
        make_invoice(books.database, "org_2", "2026-11")
