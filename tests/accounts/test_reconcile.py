"""`ledger verify` finds what is planted. Each error is written past the triggers that would otherwise refuse it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from musespark.accounts.database import Database
from musespark.accounts.journal import encode
from musespark.accounts.reconcile import verify
from tests.accounts.books import Books, make_books, used


@pytest.fixture
def settled(state_dir: Path) -> Iterator[Books]:
    """On SQLite, where a test can take the triggers away; PostgreSQL runs the same queries in every other test."""
    database = Database.open(state_dir)
    books = make_books(database, state_dir)
    books.credit(10**9)
    books.ledger.settle(books.open("r1"), used(10))
    books.open_hold = books.open("r2")  # type: ignore[attr-defined]
    books.check()
    yield books
    books.ledger.close()
    database.close()


def plant(books: Books, *statements: str) -> None:
    def work(tx) -> None:  # type: ignore[no-untyped-def]
        tx.execute("PRAGMA ignore_check_constraints = ON")
        for (name,) in tx.rows("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            tx.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            tx.execute(statement)

    books.database.transact(work)


@pytest.mark.parametrize(
    ("statement", "check", "difference"),
    [  # the difference is stated where one planted figure is off in known places only
        ("UPDATE balances SET wallet = wallet + 7, revenue = revenue - 7", "balance is the sum of its transfers", 14),
        ("UPDATE balances SET wallet = wallet + 7", "debits are credits", 14),
        ("UPDATE transfers SET amount = amount + 5 WHERE id = 'r1/1/end'", "usage is what moved to revenue", 25),
        ("UPDATE holds SET held = held + 3 WHERE state = 'open'", "a hold has what its transfers put there", 15),
        ("UPDATE transfers SET id = 'r2/1/end' WHERE id = 'r2/1/hold'", "a hold is resolved once", 1),
        ("UPDATE usage_records SET output = output + 1", "lines partition the tokens", None),
        ("UPDATE usage_records SET amount = amount + 1", "the amount is tokens times prices", 1),
        (
            "UPDATE usage_records SET price_output = 0, amount = amount - 42500, billed = billed - 42500",
            "the prices are the price list's",
            None,
        ),
        ("DELETE FROM usage_records", "a posted hold has a usage record", None),
        ("DELETE FROM usage_records", "revenue has a usage record", None),
        ("UPDATE spending SET posted = 0 WHERE scope_id = 'key_a'", "spending posted is the sum of the requests", None),
        ("DELETE FROM spending WHERE scope_id = 'proj_a'", "spending is counted", None),
        ("UPDATE credit_lots SET remaining = remaining - 999999000", "credit lots hold what the wallet has", None),
    ],
)  # fmt: skip
def test_a_planted_error_is_found(settled: Books, statement: str, check: str, difference: int | None) -> None:
    plant(settled, statement)
    report = verify(settled.database, settled.state_dir / "journal")
    assert not report.sound
    assert check in {finding.check for finding in report.findings}
    if difference is not None:
        assert report.difference == difference


def test_an_engine_record_that_the_ledger_contradicts_is_found(settled: Books) -> None:
    record = {"kind": "usage", "hold": "r1/1", "lines": [100, 0, 0, 12, 0]}
    settled.ledger.journal.append(record)
    report = verify(settled.database, settled.state_dir / "journal")
    (finding,) = report.findings
    assert (finding.check, finding.what) == ("the ledger has the engine's tokens", "r1/1 output")
    assert (finding.expected, finding.found, report.difference) == (12, 10, 2)


def test_an_engine_record_that_the_database_lacks_is_pending(settled: Books) -> None:
    settled.ledger.journal.append({"kind": "usage", "hold": "r9/1", "lines": [1, 0, 0, 1, 0]})
    report = verify(settled.database, settled.state_dir / "journal")
    assert (report.sound, report.pending) == (True, 1)


def test_a_damaged_line_of_the_journal_is_found_and_a_torn_last_one_too(settled: Books) -> None:
    path = next(settled.ledger.journal.folder.glob("*.jsonl"))
    with path.open("ab") as file:
        file.write(encode({"kind": "void", "hold": "r1/1"}).replace(b"r1", b"r2"))
        file.write(b'{"kind": "usage", "ho')
    assert verify(settled.database, settled.state_dir / "journal").damaged == 2


def test_the_database_refuses_to_change_what_is_written(books: Books) -> None:
    books.credit(10**9)
    books.ledger.settle(books.open("r1"), used(10))
    for statement in (
        "UPDATE transfers SET amount = 0",
        "DELETE FROM transfers",
        "UPDATE usage_records SET output = 0",
        "DELETE FROM usage_records",
        "UPDATE price_versions SET output = 0",
        "UPDATE holds SET held = 1",
        "DELETE FROM holds",
        "INSERT INTO transfers VALUES ('x', 'org_1', 'wallet', 'held', 9999999999, 'hold', NULL, 0)",
        "INSERT INTO transfers VALUES ('x', 'org_1', 'wallet', 'wallet', 1, 'hold', NULL, 0)",
        "INSERT INTO transfers VALUES ('x', 'org_1', 'wallet', 'held', -1, 'hold', NULL, 0)",
        "UPDATE balances SET wallet = wallet + 1",
    ):
        with pytest.raises(sa.exc.DatabaseError), books.database.write() as connection:
            connection.exec_driver_sql(statement)
    books.check()


def test_a_cap_is_held_by_the_database_itself(books: Books) -> None:
    books.credit(10**9)
    books.ledger.set_cap("key_a", 1)
    with pytest.raises(sa.exc.DatabaseError), books.database.write() as connection:
        connection.exec_driver_sql("INSERT INTO spending VALUES ('key_a', '2026-11', 1, 1)")
    with books.database.write() as connection:
        connection.exec_driver_sql("INSERT INTO spending VALUES ('key_a', '2026-11', 1, 0)")
    with pytest.raises(sa.exc.DatabaseError), books.database.write() as connection:
        connection.exec_driver_sql("UPDATE spending SET posted = 1")


def test_a_usage_record_whose_parts_do_not_sum_up_is_refused_by_the_database(books: Books) -> None:
    books.credit(10**9)
    books.ledger.settle(books.open("r1"), used(10))
    columns = "hold_id, 1, request_id, organisation_id, project_id, key_id, model, period, text_in, image_in, cached_in"
    rest = (
        "price_version, price_text_in, price_image_in, price_cached_in, price_output, price_reasoning, request_fee, "
        "{amount}, {amount}, 0, outcome, opened_at, settled_at"
    )
    for output, total, amount in ((11, 110, "amount"), (10, 110, "amount + 1")):
        with pytest.raises(sa.exc.DatabaseError), books.database.write() as connection:
            connection.exec_driver_sql(
                f"INSERT INTO usage_records SELECT {columns}, {output}, reasoning, {total}, "
                f"{rest.format(amount=amount)} FROM usage_records"
            )
    books.check()
