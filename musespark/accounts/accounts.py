"""The door of the accounts room: opens the state folder and joins database, pepper, keys and verification.

    with Accounts.open(state_dir) as accounts:
        new = accounts.create_key("laptop")
        print(new.secret)          # shown once; the database has only its HMAC

All methods are synchronous. `remembered` never blocks; the others read or write the database (a fraction of a
millisecond, at worst `BUSY_TIMEOUT_MS`), so on an event loop they belong in a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa

from musespark.accounts import keys, tables, usage
from musespark.accounts.actor import Actor, machine
from musespark.accounts.database import Database
from musespark.accounts.keys import Key, NewKey
from musespark.accounts.ledger import Ledger
from musespark.accounts.releases import Releases
from musespark.accounts.secret import Pepper, create_pepper, read_pepper
from musespark.accounts.sessions import Sessions
from musespark.accounts.sign_in import SignIn
from musespark.accounts.verify import Identity, KeyVerifier
from musespark.errors import StateError


class Accounts:
    def __init__(self, database: Database, pepper: Pepper, state_dir: Path) -> None:
        self.database = database
        self.pepper = pepper
        self.releases = Releases(database)
        self.sessions = Sessions(database, pepper)
        self.sign_in = SignIn(database, pepper, self.sessions)
        self._verifier = KeyVerifier(database, pepper)
        self._state_dir = state_dir
        self._ledger: Ledger | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, state_dir: Path, database_url: str | None = None) -> Accounts:
        """Open the state folder, creating what is missing. Raises StateError saying what to do.

        The database is SQLite in that folder, or the PostgreSQL at `database_url`; the pepper is always in the folder.
        """
        database = Database.open(state_dir, database_url)
        try:
            return cls(database, _pepper(database, state_dir / "pepper"), state_dir)
        except BaseException:
            database.close()
            raise

    @property
    def ledger(self) -> Ledger:
        """Opened when it is first asked for: it begins a journal of this process in the state folder."""
        with self._lock:
            if self._ledger is None:
                self._ledger = Ledger(self.database, self._state_dir)
                self._ledger.on_settled(usage.count)
            return self._ledger

    @property
    def database_name(self) -> str:
        """The SQLite file or the PostgreSQL URL, without a password."""
        return self.database.name

    def create_first_key(self) -> NewKey | None:
        """The key to print on the very first start, with the default organisation and project; None ever after."""
        return keys.create_first_key(self.database, self.pepper)

    def create_key(
        self, name: str, *, by: Actor | None = None, held: Collection[str] | None = None, **options: Any
    ) -> NewKey:
        """`options` are the fields of `keys.KeyOptions`; who makes it has `held`; the machine's owner has all."""
        return keys.create_key(self.database, self.pepper, by or machine(), name, keys.KeyOptions(**options), held)

    def rotate_key(
        self,
        key_id: str,
        *,
        overlap_s: int,
        by: Actor | None = None,
        organisation_id: str | None = None,
        held: Collection[str] | None = None,
    ) -> NewKey:
        new = keys.rotate_key(
            self.database,
            self.pepper,
            by or machine(),
            key_id,
            overlap_s=overlap_s,
            organisation_id=organisation_id,
            held=held,
        )
        self._verifier.forget_all()
        return new

    def list_keys(self, organisation_id: str | None = None, project_id: str | None = None) -> list[Key]:
        return keys.list_keys(self.database, organisation_id=organisation_id, project_id=project_id)

    def revoke_key(self, key_id: str, *, by: Actor | None = None, organisation_id: str | None = None) -> Key:
        key = keys.revoke_key(self.database, by or machine(), key_id, organisation_id=organisation_id)
        self._verifier.forget_all()
        return key

    def forget_keys(self) -> None:
        """Ask the database about every key again: after an organisation, project or service account has ended."""
        self._verifier.forget_all()

    def remembered(self, secret: str) -> Identity | None:
        return self._verifier.remembered(secret)

    def verify(self, secret: str) -> Identity:
        return self._verifier.verify(secret)

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def _pepper(database: Database, path: Path) -> Pepper:
    """The pepper that made the stored digests; a new one only where there are none."""
    with database.read() as connection:
        used = set(connection.scalars(sa.select(tables.keys.c.pepper_id).distinct()))
    pepper = read_pepper(path)
    if pepper is None:
        if used:
            raise StateError(
                f"{path} is gone, and without it none of the keys in {database.name} can be checked; restore it from a "
                f"backup, or remove {database.name} too and make new keys"
            )
        try:
            pepper = create_pepper(path)
        except OSError as error:
            raise StateError(f"{path} can't be written: {error.strerror}") from None
    if used - {pepper.id}:
        raise StateError(
            f"{path} is not the one that the keys in {database.name} were made with; restore the right one from a "
            f"backup, or remove {database.name} too and make new keys"
        )
    return pepper
