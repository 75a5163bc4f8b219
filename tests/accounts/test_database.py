"""The state folder and the migrations, on real SQLite files."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import musespark.accounts
from musespark.accounts.accounts import Accounts
from musespark.accounts.database import LATEST_REVISION, Database
from musespark.accounts.tables import metadata
from musespark.errors import StateError

MIGRATIONS = Path(musespark.accounts.__file__).parent / "migrations"


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may write anywhere, so a test about permissions steps down for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        os.seteuid(0)


def test_migrations_make_exactly_the_tables_that_the_code_uses(database: Database) -> None:
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_latest_revision_is_the_head_of_the_migrations() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == LATEST_REVISION


def test_migrations_go_down_to_nothing_and_up_again(database: Database) -> None:
    database.migrate("base")
    with database.read() as connection:
        assert sa.inspect(connection).get_table_names() == ["alembic_version"]
    assert database.revision() is None
    database.migrate()
    assert database.revision() == LATEST_REVISION
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_database_runs_in_wal_mode_with_foreign_keys_and_a_busy_timeout(state_dir: Path) -> None:
    database = Database.open(state_dir)
    with database.read() as connection:
        pragmas = {p: connection.exec_driver_sql(f"PRAGMA {p}").scalar() for p in ("journal_mode", "foreign_keys")}
        assert pragmas == {"journal_mode": "wal", "foreign_keys": 1}
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 5000
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO projects (id, organisation_id, name, created_at) VALUES ('proj_1', 'org_missing', 'name', 0)"
        )
    database.close()


def test_folder_and_files_are_for_their_owner_only(state_dir: Path) -> None:
    with Accounts.open(state_dir) as accounts:
        accounts.create_first_key()
        assert state_dir.stat().st_mode & 0o777 == 0o700
        assert {file.name for file in state_dir.iterdir()} >= {"musespark.db", "pepper"}
        assert all(file.stat().st_mode & 0o077 == 0 for file in state_dir.iterdir())


def test_a_later_start_does_not_import_alembic(state_dir: Path) -> None:
    Database.open(state_dir).close()
    code = (
        "import sys, pathlib; from musespark.accounts.accounts import Accounts; "
        f"Accounts.open(pathlib.Path({str(state_dir)!r})).close(); sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_processes_that_start_at_once_make_one_database_and_one_key(state_dir: Path) -> None:
    code = (
        "import pathlib; from musespark.accounts.accounts import Accounts\n"
        f"with Accounts.open(pathlib.Path({str(state_dir)!r})) as opened: print(opened.create_first_key() is not None)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert sorted(outputs) == ["False", "False", "True"]


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("not a folder")
    with pytest.raises(StateError, match=r"state is a file; choose another folder with MUSESPARK_STATE_DIR"):
        Database.open(tmp_path / "state")


def test_a_folder_that_is_not_writable_is_named_with_what_to_do(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir(mode=0o500)
    with (
        ordinary_user(),
        pytest.raises(StateError, match=r"state can't be written to: Permission denied; choose another folder"),
    ):
        Database.open(state_dir)


def test_a_folder_that_can_not_be_made_is_named() -> None:
    with pytest.raises(StateError, match="can't be written to"):
        Database.open(Path("/dev/null/state"))


def test_a_damaged_database_is_named(state_dir: Path) -> None:
    state_dir.mkdir()
    (state_dir / "musespark.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(StateError, match=r"musespark\.db is damaged"):
        Database.open(state_dir)


def test_a_database_that_is_a_folder_is_named(state_dir: Path) -> None:
    (state_dir / "musespark.db").mkdir(parents=True)
    with pytest.raises(StateError, match=r"musespark\.db can't be opened"):
        Database.open(state_dir)


def test_a_database_of_a_newer_version_is_left_alone(state_dir: Path) -> None:
    Database.open(state_dir).close()
    with sqlite3.connect(state_dir / "musespark.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(StateError, match="newer version of musespark"):
        Database.open(state_dir)


def test_state_folders_with_odd_names_work(tmp_path: Path) -> None:
    Database.open(tmp_path / "100% odd ?#;name").close()
    assert (tmp_path / "100% odd ?#;name" / "musespark.db").stat().st_size > 0
