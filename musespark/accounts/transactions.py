"""Short transactions on the database driver itself, written once for SQLite and PostgreSQL.

The ledger takes two of them per request, so they must be cheap: statements are plain SQL with `?`, prepared once per
connection by the driver. What the two databases do differently stays here: locks, retries, and which errors mean that
the database is away (its server stopped, its disk is full) rather than that a statement is wrong.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

BUSY_TIMEOUT_MS = 5000
WRITE_LOCK = 7_365_001  # an advisory lock of PostgreSQL: any number that nobody else uses there
# SQLite's own 1000 makes one commit in about 80 wait for the disk. `checkpoint` is called each second instead, and this
# bounds the WAL file (at 64 MB) where nobody calls it.
CHECKPOINT_PAGES = 16_384
RETRIES = 5  # of a transaction that PostgreSQL broke off because another came between

T = TypeVar("T")


class DatabaseAway(Exception):
    """The database can't be reached or written now; nothing of the transaction happened, or it is not known to have."""


class Transaction:
    """One open transaction. `for_update` ends a SELECT whose rows must not change before the commit."""

    __slots__ = ("_execute", "dialect", "for_update")

    def __init__(self, execute: Callable[..., Any], dialect: Literal["sqlite", "postgresql"]) -> None:
        self._execute = execute
        self.dialect = dialect
        self.for_update = " FOR UPDATE" if dialect == "postgresql" else ""  # SQLite has one writer at a time

    def alone(self) -> None:
        """Wait for the one lock of administrative changes, so that what is read next is not changed by another."""
        if self.dialect == "postgresql":
            self._execute("SELECT pg_advisory_xact_lock(?)", (WRITE_LOCK,))

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run a statement that returns no rows; returns how many it changed."""
        return int(self._execute(sql, parameters).rowcount)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        return self._execute(sql, parameters).fetchone()


class SqliteTransactions:
    """Two connections, one that waits for the disk at commit and one that does not, under the process's write lock."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connections: dict[bool, sqlite3.Connection] = {}

    @contextmanager
    def turn(self) -> Iterator[None]:
        """This process's turn to write. Threads queue here without sleeping, which SQLite's own waiting does."""
        if not self._lock.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
            raise OperationalError("BEGIN IMMEDIATE", None, sqlite3.OperationalError("database is locked"))
        try:
            yield
        finally:
            self._lock.release()

    def run(self, work: Callable[[Transaction], T], *, durable: bool) -> T:
        try:
            with self.turn():
                connection = self._connections.get(durable) or self._connect(durable)
                execute = connection.execute
                execute("BEGIN IMMEDIATE")
                try:
                    result = work(Transaction(execute, "sqlite"))
                    execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        execute("ROLLBACK")
                    raise
                return result
        except OperationalError as error:
            raise DatabaseAway(str(error.orig)) from error
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # a wrong statement, not a missing database
                raise
            raise DatabaseAway(str(error)) from error

    def _connect(self, durable: bool) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=512)
        for pragma in (
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
            "journal_mode = WAL",
            "foreign_keys = ON",
            f"synchronous = {'FULL' if durable else 'NORMAL'}",
            f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
        ):
            connection.execute(f"PRAGMA {pragma}")
        self._connections[durable] = connection
        return connection

    def checkpoint(self) -> None:
        """Move what is in the WAL into the database file, beside running transactions; waits for the disk."""
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        with self._lock:
            for connection in self._connections.values():
                connection.close()
            self._connections.clear()


class PostgresTransactions:
    """A few connections, opened when needed and kept; a commit always waits for the server's disk."""

    def __init__(self, url: sa.URL, arguments: dict[str, Any], *, most: int = 8) -> None:
        self._url = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._arguments = arguments
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()
        self._slots = threading.Semaphore(most)
        self._closed = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def run(self, work: Callable[[Transaction], T], *, durable: bool) -> T:
        del durable
        import psycopg

        with self._slots:
            for attempt in range(RETRIES):
                try:
                    return self._once(work)
                except (
                    psycopg.errors.DeadlockDetected,
                    psycopg.errors.SerializationFailure,
                    psycopg.errors.RaiseException,  # a trigger of ours: a limit was lowered between look and write
                ):
                    if attempt + 1 == RETRIES:
                        raise
                except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                    raise DatabaseAway(str(error).strip()) from error
        raise AssertionError("not reached")

    def _once(self, work: Callable[[Transaction], T]) -> T:
        import psycopg

        connection = self._begin()
        try:
            result = work(Transaction(functools.partial(_execute_postgres, connection), "postgresql"))
            connection.execute("COMMIT")
        except BaseException:
            try:
                connection.execute("ROLLBACK")
                self._idle.put(connection)
            except psycopg.Error:
                connection.close()
            raise
        self._idle.put(connection)
        return result

    def _begin(self) -> Any:
        """A connection in a transaction. Kept ones may have died with a restarted server: those are dropped."""
        import psycopg

        while True:
            try:
                connection = self._idle.get_nowait()
            except queue.Empty:
                connection = psycopg.connect(self._url, autocommit=True, **self._arguments)
                connection.execute("BEGIN")
                return connection
            try:
                connection.execute("BEGIN")
                return connection
            except psycopg.Error:
                connection.close()

    def checkpoint(self) -> None:
        """The server does it by itself."""

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get_nowait().close()


def _execute_postgres(connection: Any, sql: str, parameters: Sequence[Any] = ()) -> Any:
    return connection.execute(_for_psycopg(sql), parameters)


@functools.cache
def _for_psycopg(sql: str) -> str:
    return sql.replace("?", "%s")
