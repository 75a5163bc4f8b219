from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from musespark.accounts.accounts import Accounts
from musespark.accounts.database import Database
from tests.accounts.books import Books, make_books
from tests.postgres import PostgresServer, running_server


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """None for SQLite: a test that takes this runs on both databases."""
    if request.param == "sqlite":
        return None
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture
def database(state_dir: Path, database_url: str | None) -> Iterator[Database]:
    opened = Database.open(state_dir, database_url)
    yield opened
    opened.close()


@pytest.fixture
def accounts(state_dir: Path, database_url: str | None) -> Iterator[Accounts]:
    with Accounts.open(state_dir, database_url) as opened:
        yield opened


@pytest.fixture
def books(database: Database, state_dir: Path) -> Iterator[Books]:
    made = make_books(database, state_dir)
    yield made
    made.ledger.close()
