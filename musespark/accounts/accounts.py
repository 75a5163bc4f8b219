"""The door of the accounts room: opens the state folder and joins database, pepper, keys and verification.

    with Accounts.open(state_dir) as accounts:
        new = accounts.create_key("laptop")
        print(new.secret)          # shown once; the database has only its HMAC

All methods are synchronous. `remembered` never blocks; the others read or write the database (a fraction of a
millisecond, at worst `BUSY_TIMEOUT_MS`), so on an event loop they belong in a thread.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import sqlalchemy as sa

from musespark.accounts import keys, tables
from musespark.accounts.database import Database
from musespark.accounts.keys import Key, NewKey
from musespark.accounts.secret import Pepper, create_pepper, read_pepper
from musespark.accounts.verify import Identity, KeyVerifier
from musespark.errors import StateError


class Accounts:
    def __init__(self, database: Database, pepper: Pepper) -> None:
        self._database = database
        self._pepper = pepper
        self._verifier = KeyVerifier(database, pepper)

    @classmethod
    def open(cls, state_dir: Path) -> Accounts:
        """Open the state folder, creating what is missing. Raises StateError saying what to do."""
        database = Database.open(state_dir)
        try:
            return cls(database, _pepper(database, state_dir / "pepper"))
        except BaseException:
            database.close()
            raise

    @property
    def database_path(self) -> Path:
        return self._database.path

    def create_first_key(self) -> NewKey | None:
        """The key to print on the very first start, with the default organisation and project; None ever after."""
        return keys.create_first_key(self._database, self._pepper)

    def create_key(self, name: str, *, expires_at: int | None = None) -> NewKey:
        return keys.create_key(self._database, self._pepper, name, expires_at)

    def list_keys(self) -> list[Key]:
        return keys.list_keys(self._database)

    def revoke_key(self, key_id: str) -> Key:
        key = keys.revoke_key(self._database, key_id)
        self._verifier.forget_all()
        return key

    def remembered(self, secret: str) -> Identity | None:
        return self._verifier.remembered(secret)

    def verify(self, secret: str) -> Identity:
        return self._verifier.verify(secret)

    def close(self) -> None:
        self._database.close()

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
                f"{path} is gone, and without it none of the keys in {database.path} can be checked; restore it from a "
                f"backup, or remove {database.path} too and make new keys"
            )
        try:
            pepper = create_pepper(path)
        except OSError as error:
            raise StateError(f"{path} can't be written: {error.strerror}") from None
    if used - {pepper.id}:
        raise StateError(
            f"{path} is not the one that the keys in {database.path} were made with; restore the right one from a "
            f"backup, or remove {database.path} too and make new keys"
        )
    return pepper
