"""`musespark ledger` on a state folder with one settled request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from musespark.accounts.database import Database
from musespark.cli import app
from musespark.errors import NotFound
from tests.accounts.books import make_books, used


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    database = Database.open(tmp_path)
    books = make_books(database, tmp_path)
    books.credit(10**9)
    books.ledger.settle(books.open("req_1"), used(10))
    books.ledger.close()
    database.close()
    return tmp_path


def test_verify_prints_a_difference_of_0(state_dir: Path) -> None:
    result = CliRunner().invoke(app, ["ledger", "verify", "--state-dir", str(state_dir)])
    assert result.exit_code == 0
    assert result.output == (
        "difference 0 in 4 transfers, 1 holds, 1 usage records and 1 records of the engine; "
        "0 of those are not in the database yet\n"
    )


def test_verify_names_what_is_wrong_and_exits_with_1(state_dir: Path) -> None:
    database = Database.open(state_dir)
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE spending SET posted = posted + 3 WHERE scope_id = 'key_a'")
    database.close()
    result = CliRunner().invoke(app, ["ledger", "verify", "--state-dir", str(state_dir)])
    assert result.exit_code == 1
    assert "spending posted is the sum of the requests: key_a 2026-11: expected 167,500, found 167,503" in result.output
    as_json = CliRunner().invoke(app, ["ledger", "verify", "--json", "--state-dir", str(state_dir)])
    assert json.loads(as_json.output)["difference"] == 3


def test_explain_prints_the_lines_of_a_charge(state_dir: Path) -> None:
    result = CliRunner().invoke(app, ["ledger", "explain", "req_1", "--state-dir", str(state_dir)])
    (attempt,) = json.loads(result.output)
    assert attempt["billed_nano"] == 100 * 1250 + 10 * 4250
    missing = CliRunner().invoke(app, ["ledger", "explain", "req_2", "--state-dir", str(state_dir)])
    assert isinstance(missing.exception, NotFound)
