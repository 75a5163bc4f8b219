"""Opens the platform's database and brings its tables up to date: one SQLite file, or PostgreSQL where a URL is given.

SQLite runs in WAL mode: readers never wait, and writers queue, those of this process on a lock and those of others for
at most `BUSY_TIMEOUT_MS`. On PostgreSQL `write` queues the same way on an advisory lock, so that both behave alike; the
ledger's transactions (`transact`) lock rows instead. Calls block; on an event loop they belong in a thread. What can go
wrong with the folder, the file or the server is a StateError at the start, and a DatabaseAway later.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from musespark.accounts.transactions import (
    BUSY_TIMEOUT_MS,
    WRITE_LOCK,
    PostgresTransactions,
    SqliteTransactions,
    Transaction,
)
from musespark.errors import StateError

FILE_NAME = "musespark.db"
_MIGRATIONS = Path(__file__).parent / "migrations"
# Files are named 0001_subject.py and so on, so the newest is found without importing Alembic; a test compares.
LATEST_REVISION = max(file.name.split("_")[0] for file in (_MIGRATIONS / "versions").glob("[0-9]*.py"))

T = TypeVar("T")


def prepare_state_dir(state_dir: Path) -> None:
    """Make `state_dir` if it does not exist, for its owner only. Raises StateError if it can't be written to."""
    advice = "choose another folder with MUSESPARK_STATE_DIR, or change its permissions"
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = state_dir / f".writable-{os.getpid()}"
        probe.touch(mode=0o600)
        probe.unlink()
    except FileExistsError:
        raise StateError(f"the state folder {state_dir} is a file; {advice}") from None
    except OSError as error:
        raise StateError(f"the state folder {state_dir} can't be written to: {error.strerror}; {advice}") from None


class Database:
    """The open database. Thread-safe; `close` when done. `name` is for messages: never with a password."""

    def __init__(self, url: sa.URL) -> None:
        self.dialect: Literal["sqlite", "postgresql"] = "sqlite"
        self.name = url.render_as_string(hide_password=True)
        self._transactions: SqliteTransactions | PostgresTransactions
        if url.get_backend_name() == "sqlite":
            self.name = str(url.database)
            self._transactions = SqliteTransactions(str(url.database))
            self._engine = sa.create_engine(url)
            sa.event.listen(self._engine, "connect", _set_pragmas)
            sa.event.listen(self._engine, "begin", _begin)
        else:
            self.dialect = "postgresql"
            self._engine = sa.create_engine(url, connect_args=_POSTGRES_ARGUMENTS, pool_pre_ping=True)
            self._transactions = PostgresTransactions(url, _POSTGRES_ARGUMENTS)

    @classmethod
    def open(cls, state_dir: Path, url: str | None = None) -> Database:
        """Open or create the database, with all migrations applied. Raises StateError.

        `url` is None for SQLite in the state folder, else postgresql://user:password@host/name.
        """
        prepare_state_dir(state_dir)
        path = state_dir / FILE_NAME
        database = cls(sa.URL.create("sqlite", database=str(path)) if url is None else _postgres_url(url))
        try:
            if url is None:
                path.touch(mode=0o600)  # before SQLite creates it with everybody's permissions; WAL files inherit these
            if database.revision() != LATEST_REVISION:  # importing Alembic costs 0.2 s, so only when there is work
                database.migrate()
        except OperationalError as error:
            database.close()
            advice = (
                "is the disk full, or the file read-only?"
                if url is None
                else "is the server running, and the URL right?"
            )
            raise StateError(f"{database.name} can't be opened: {str(error.orig).strip()}; {advice}") from None
        except DatabaseError as error:
            database.close()
            if url is not None:
                raise StateError(f"{database.name} can't be used: {str(error.orig).strip()}") from None
            raise StateError(f"{path} is damaged: {error.orig}; restore it from a backup") from None
        except OSError as error:
            database.close()
            raise StateError(f"{path} can't be opened: {error.strerror}") from None
        except BaseException:
            database.close()
            raise
        return database

    def revision(self) -> str | None:
        """The migration that the tables are at; None for an empty database."""
        with self.read() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            return connection.scalar(sa.text("SELECT version_num FROM alembic_version"))

    def migrate(self, target: str = "head") -> None:
        """Move the tables up or down to the revision `target`, all steps in one transaction.

        Raises StateError if a newer version of the program has written the database.
        """
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        folder = str(_MIGRATIONS).replace("%", "%%")  # a % starts an interpolation there
        config.set_main_option("script_location", folder)
        with self.write() as connection:  # a second process waits here, then finds nothing to do
            config.attributes["connection"] = connection
            try:
                if target in ("head", LATEST_REVISION):
                    command.upgrade(config, target)
                else:
                    command.downgrade(config, target)
            except CommandError as error:
                raise StateError(
                    f"{self.name} can't be brought to version {target}: {error}; it was probably written by a newer "
                    "version of musespark: install that one, or choose another folder with MUSESPARK_STATE_DIR"
                ) from None

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that sees one consistent state and must not write."""
        with self._engine.connect() as connection:
            if self.dialect == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock from its start: what it reads can't change before it writes."""
        with self._transactions.turn(), self._engine.connect() as connection:
            connection = connection.execution_options(immediate=True)
            with connection.begin():
                if self.dialect == "postgresql":
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(WRITE_LOCK)))
                yield connection

    def transact(self, work: Callable[[Transaction], T], *, durable: bool = False) -> T:
        """Run `work` in one transaction on the driver itself, some 50 µs cheaper per statement than SQLAlchemy.

        `work` may run again after a deadlock, so it must have no effects outside the transaction. `durable` waits for
        the disk on SQLite too, where otherwise a power cut (not a crash of the process) may undo the last moments.
        Raises DatabaseAway where the database can't be reached or written.
        """
        return self._transactions.run(work, durable=durable)

    def sync(self) -> None:
        """Wait until everything committed so far is on the disk. PostgreSQL has waited at each commit."""
        if self.dialect == "sqlite":
            for path in (f"{self.name}-wal", self.name):
                with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                    os.fsync(file.fileno())

    def checkpoint(self) -> None:
        """Keep SQLite's WAL small, so that no transaction has to: called about once a second while requests run."""
        self._transactions.checkpoint()

    def close(self) -> None:
        self._transactions.close()
        self._engine.dispose()


# A server that stopped answering must not hold a request for minutes.
_POSTGRES_ARGUMENTS = {
    "connect_timeout": 3,
    "options": f"-c timezone=UTC -c lock_timeout={BUSY_TIMEOUT_MS} -c statement_timeout=30000",
}


def _postgres_url(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except ArgumentError:
        raise StateError("the database URL can't be read; it looks like postgresql://user:password@host/name") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise StateError(
            f"the database URL starts with {url.drivername}://, but only postgresql:// is supported; leave it out for "
            "SQLite in the state folder"
        )
    return url.set(drivername="postgresql+psycopg")


def _set_pragmas(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late for DDL; `_begin` sends it
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
