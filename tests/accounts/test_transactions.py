"""Transactions on the driver, on both databases, and what happens when the database is not there."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from musespark.accounts.database import Database
from musespark.accounts.transactions import DatabaseAway, Transaction
from musespark.errors import StateError
from tests.postgres import running_server


def add(tx: Transaction, name: str) -> int:
    return tx.execute("INSERT INTO organisations (id, name, created_at) VALUES (?, ?, ?)", (name, "100%", 0))


def names(tx: Transaction) -> list[str]:
    return [row[0] for row in tx.rows("SELECT id FROM organisations ORDER BY id")]


def test_a_transaction_is_kept_whole_or_not_at_all(database: Database) -> None:
    assert database.transact(lambda tx: add(tx, "one")) == 1

    def fails(tx: Transaction) -> None:
        add(tx, "two")
        raise KeyError("two")

    with pytest.raises(KeyError):
        database.transact(fails)
    database.transact(lambda tx: add(tx, "three"), durable=True)
    assert database.transact(names) == ["one", "three"]


def test_a_wrong_statement_is_not_taken_for_a_missing_database(database: Database) -> None:
    with pytest.raises(Exception, match="no_such_table") as caught:
        database.transact(lambda tx: tx.rows("SELECT * FROM no_such_table"))
    assert not isinstance(caught.value, DatabaseAway)


def test_threads_count_together_without_losing_one(database: Database) -> None:
    database.transact(lambda tx: add(tx, "org"))

    def count(tx: Transaction) -> None:
        row = tx.row("SELECT created_at FROM organisations WHERE id = 'org'" + tx.for_update)
        assert row is not None
        tx.execute("UPDATE organisations SET created_at = ? WHERE id = 'org'", (row[0] + 1,))

    threads = [threading.Thread(target=lambda: [database.transact(count) for _ in range(25)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.transact(lambda tx: tx.row("SELECT created_at FROM organisations")) == (200,)


def test_a_long_writer_makes_sqlite_away_and_then_it_comes_back(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musespark.accounts.transactions.BUSY_TIMEOUT_MS", 50)
    database = Database.open(state_dir)
    raw = sqlite3.connect(state_dir / "musespark.db", isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseAway, match="locked"):
        database.transact(lambda tx: add(tx, "one"))
    raw.execute("ROLLBACK")
    raw.close()
    assert database.transact(lambda tx: add(tx, "one")) == 1
    database.close()


def test_a_stopped_server_is_away_and_comes_back_by_itself(state_dir: Path) -> None:
    with running_server() as server:
        database = Database.open(state_dir, server.empty_database())
        database.transact(lambda tx: add(tx, "one"))
        server.stop("immediate")
        with pytest.raises(DatabaseAway):
            database.transact(lambda tx: add(tx, "two"))
        server.start()
        assert database.transact(lambda tx: add(tx, "three")) == 1
        assert database.transact(names) == ["one", "three"]
        with database.read() as connection:  # SQLAlchemy's own pool recovers, too
            assert connection.exec_driver_sql("SELECT count(*) FROM organisations").scalar() == 2
        database.close()


def test_an_unusable_url_is_refused_without_its_password(state_dir: Path) -> None:
    with pytest.raises(StateError, match="only postgresql:// is supported"):
        Database.open(state_dir, "mysql://user:hunter2@host/name")
    with pytest.raises(StateError, match="can't be read"):
        Database.open(state_dir, "hunter2")
    with pytest.raises(StateError, match="is the server running") as caught:
        Database.open(state_dir, f"postgresql://user:hunter2@/name?host={state_dir}")
    assert "hunter2" not in caught.value.message
