"""Making, listing and revoking keys.

All functions are synchronous and take an open Database; the door that other rooms use is accounts.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from musespark.accounts import tables
from musespark.accounts.database import Database
from musespark.accounts.secret import Pepper, display_prefix, new_id, new_secret
from musespark.errors import InvalidRequest, NotFound

LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Key:
    """What may be shown about a key. Times are UTC seconds since 1970; `last_used_at` is coarse (a minute)."""

    id: str
    name: str
    prefix: str
    project_id: str
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made: the only time that its secret is known to anybody but its owner."""

    key: Key
    secret: str

    def __repr__(self) -> str:
        return f"NewKey(key={self.key!r}, secret='…')"


def create_first_key(database: Database, pepper: Pepper) -> NewKey | None:
    """A key named "default" if no key was ever made here, else None."""
    with database.write() as connection:
        if connection.scalar(sa.select(sa.exists().select_from(tables.keys))):
            return None
        return _insert(connection, pepper, "default", None)


def create_key(database: Database, pepper: Pepper, name: str, expires_at: int | None = None) -> NewKey:
    """Make a key in the default project. Raises InvalidRequest for an unusable name or an expiry in the past."""
    name = name.strip()
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
        raise InvalidRequest(f"a key's name has 1 to {LONGEST_NAME} printable characters, not {name[:LONGEST_NAME]!r}")
    if expires_at is not None and expires_at <= time.time():
        raise InvalidRequest(f"the expiry {expires_at} (UTC seconds since 1970) is in the past")
    with database.write() as connection:
        return _insert(connection, pepper, name, expires_at)


def list_keys(database: Database) -> list[Key]:
    """Every key ever made, oldest first."""
    with database.read() as connection:
        rows = connection.execute(sa.select(*_KEY_COLUMNS).order_by(tables.keys.c.created_at, tables.keys.c.id))
        return [Key(**row._mapping) for row in rows]


def revoke_key(database: Database, key_id: str) -> Key:
    """End a key for good; revoking twice keeps the first time. Raises NotFound."""
    keys = tables.keys
    with database.write() as connection:
        connection.execute(
            sa.update(keys).where(keys.c.id == key_id, keys.c.revoked_at.is_(None)).values(revoked_at=int(time.time()))
        )
        row = connection.execute(sa.select(*_KEY_COLUMNS).where(keys.c.id == key_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no key {key_id[:80]!r}; `musespark keys list` shows the ids")
    return Key(**row._mapping)


_KEY_COLUMNS = [
    tables.keys.c[name]
    for name in ("id", "name", "prefix", "project_id", "created_at", "last_used_at", "expires_at", "revoked_at")
]


def _insert(connection: sa.Connection, pepper: Pepper, name: str, expires_at: int | None) -> NewKey:
    secret = new_secret()
    key = Key(
        id=new_id("key"),
        name=name,
        prefix=display_prefix(secret),
        project_id=_default_project(connection),
        created_at=int(time.time()),
        last_used_at=None,
        expires_at=expires_at,
        revoked_at=None,
    )
    columns = {column.name: getattr(key, column.name) for column in _KEY_COLUMNS}
    connection.execute(sa.insert(tables.keys).values(**columns, digest=pepper.key_digest(secret), pepper_id=pepper.id))
    return NewKey(key, secret)


def _default_project(connection: sa.Connection) -> str:
    """The oldest project; the first call makes it, in an organisation of its own."""
    projects, organisations = tables.projects, tables.organisations
    found = connection.scalar(sa.select(projects.c.id).order_by(projects.c.created_at, projects.c.id).limit(1))
    if found is not None:
        return found
    now = int(time.time())
    organisation = {"id": new_id("org"), "name": "default", "created_at": now}
    connection.execute(sa.insert(organisations).values(**organisation))
    project = {"id": new_id("proj"), "organisation_id": organisation["id"], "name": "default", "created_at": now}
    connection.execute(sa.insert(projects).values(**project))
    return str(project["id"])
