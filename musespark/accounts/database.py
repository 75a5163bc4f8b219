"""Opens the platform's database in the state folder and brings its tables up to date.

One SQLite file in WAL mode: readers never wait, and one writer at a time waits for at most `BUSY_TIMEOUT_MS`. Calls
block; on an event loop they belong in a thread. What can go wrong with the folder or the file is a StateError.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, OperationalError

from musespark.errors import StateError

FILE_NAME = "musespark.db"
BUSY_TIMEOUT_MS = 5000
_MIGRATIONS = Path(__file__).parent / "migrations"
# Files are named 0001_subject.py and so on, so the newest is found without importing Alembic; a test compares.
LATEST_REVISION = max(file.name.split("_")[0] for file in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


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
    """The open database. Thread-safe; `close` when done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))
        sa.event.listen(self._engine, "connect", _set_pragmas)
        sa.event.listen(self._engine, "begin", _begin)

    @classmethod
    def open(cls, state_dir: Path) -> Database:
        """Open or create the database, with all migrations applied. Raises StateError."""
        prepare_state_dir(state_dir)
        path = state_dir / FILE_NAME
        database = cls(path)
        try:
            path.touch(mode=0o600)  # before SQLite creates it with everybody's permissions; WAL files inherit these
            if database.revision() != LATEST_REVISION:  # importing Alembic costs 0.2 s, so only when there is work
                database.migrate()
        except OperationalError as error:
            database.close()
            raise StateError(
                f"{path} can't be opened: {error.orig}; is the disk full, or the file read-only?"
            ) from None
        except DatabaseError as error:
            database.close()
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
        config.set_main_option(
            "script_location", str(_MIGRATIONS).replace("%", "%%")
        )  # a % starts an interpolation there
        with self.write() as connection:  # a second process waits here, then finds nothing to do
            config.attributes["connection"] = connection
            try:
                if target in ("head", LATEST_REVISION):
                    command.upgrade(config, target)
                else:
                    command.downgrade(config, target)
            except CommandError as error:
                raise StateError(
                    f"{self.path} can't be brought to version {target}: {error}; it was probably written by a newer "
                    "version of musespark: install that one, or choose another folder with MUSESPARK_STATE_DIR"
                ) from None

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that sees one consistent state and must not write."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock from its start: what it reads can't change before it writes."""
        with self._engine.connect() as connection:
            connection = connection.execution_options(immediate=True)
            with connection.begin():
                yield connection

    def close(self) -> None:
        self._engine.dispose()


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
