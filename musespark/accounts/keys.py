"""Making, listing, rotating and revoking keys.

All functions are synchronous and take an open Database; the door that other rooms use is accounts.py. Where an
`organisation_id` is given, keys of another organisation do not exist.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from musespark.accounts import audit, organisations, scopes, tables
from musespark.accounts.actor import SYSTEM, Actor
from musespark.accounts.database import Database
from musespark.accounts.names import checked_name
from musespark.accounts.secret import Pepper, display_prefix, new_id, new_secret
from musespark.accounts.service_accounts import service_account_of
from musespark.errors import Conflict, InvalidRequest, NotFound

LONGEST_OVERLAP_S = 90 * 86_400


@dataclass(frozen=True, slots=True)
class Key:
    """What may be shown about a key. Times are UTC seconds since 1970; `last_used_at` is coarse (a minute).

    models, routes: what it is restricted to, None being no restriction. `replaces`: the key that it was rotated from.
    """

    id: str
    name: str
    prefix: str
    project_id: str
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    revoked_at: int | None
    access: scopes.Access = "standard"
    models: tuple[str, ...] | None = None
    routes: tuple[str, ...] | None = None
    replaces: str | None = None
    service_account_id: str | None = None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made: the only time that its secret is known to anybody but its owner."""

    key: Key
    secret: str

    def __repr__(self) -> str:
        return f"NewKey(key={self.key!r}, secret='…')"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOptions:
    """What a new key is for. Without an organisation and a project it is in the first project of the first one."""

    organisation_id: str | None = None
    project_id: str | None = None
    service_account_id: str | None = None
    expires_at: int | None = None
    access: str = "standard"
    models: Collection[str] | None = None
    routes: Collection[str] | None = None


def create_first_key(database: Database, pepper: Pepper) -> NewKey | None:
    """A key named "default" if no key was ever made here, else None."""
    with database.write() as connection:
        if connection.scalar(sa.select(sa.exists().select_from(tables.keys))):
            return None
        project = organisations.default_project(connection)
        new = _insert(connection, pepper, Key(name="default", project_id=project.id, **_fresh()))
        _record(connection, SYSTEM, "key.create", new.key, project.organisation_id)
        return new


def create_key(
    database: Database,
    pepper: Pepper,
    actor: Actor,
    name: str,
    options: KeyOptions,
    held: Collection[str] | None = None,
) -> NewKey:
    """Make a key. `held` are the permissions of who makes it, None for the owner of the machine.

    Raises InvalidRequest for an unusable name, scope or expiry, NotFound for a foreign project, and InsufficientScope
    for a key that could do more than who makes it.
    """
    name = checked_name(name, "a key's")
    access = scopes.checked_access(options.access)
    models, routes = scopes.checked_models(options.models), scopes.checked_routes(options.routes)
    if options.expires_at is not None and options.expires_at <= time.time():
        raise InvalidRequest(f"the expiry {options.expires_at} (UTC seconds since 1970) is in the past")
    scopes.check_may_grant(held, scopes.permissions_of_key(access, routes, internal=False))
    with database.write() as connection:
        project = _project(connection, options)
        if access == "operator" and not organisations.is_internal(connection, project.organisation_id):
            raise InvalidRequest("a key with access operator belongs to an internal organisation", param="access")
        key = Key(
            name=name,
            project_id=project.id,
            access=access,
            models=models,
            routes=routes,
            service_account_id=options.service_account_id,
            **_fresh(options.expires_at),
        )
        new = _insert(connection, pepper, key)
        _record(connection, actor, "key.create", new.key, project.organisation_id)
    return new


def rotate_key(
    database: Database,
    pepper: Pepper,
    actor: Actor,
    key_id: str,
    *,
    overlap_s: int,
    organisation_id: str | None = None,
    held: Collection[str] | None = None,
) -> NewKey:
    """A new key with the old one's name, scopes and expiry; the old one ends after `overlap_s` seconds, up to 90 days.

    Raises NotFound, Conflict for a key that has ended, and InsufficientScope as `create_key` does.
    """
    if not 0 <= overlap_s <= LONGEST_OVERLAP_S:
        raise InvalidRequest(
            f"overlap_s is {overlap_s}; it must be from 0 to {LONGEST_OVERLAP_S:,} (90 days)", param="overlap_s"
        )
    now = int(time.time())
    with database.write() as connection:
        old, owner = _find(connection, key_id, organisation_id)
        if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
            raise Conflict(f"{key_id} has ended already; make a new key instead")
        scopes.check_may_grant(held, scopes.permissions_of_key(old.access, old.routes, internal=False))
        fresh = Key(
            name=old.name,
            project_id=old.project_id,
            access=old.access,
            models=old.models,
            routes=old.routes,
            replaces=old.id,
            service_account_id=old.service_account_id,
            **_fresh(old.expires_at),
        )
        new = _insert(connection, pepper, fresh)
        end = now + overlap_s if old.expires_at is None else min(old.expires_at, now + overlap_s)
        connection.execute(sa.update(tables.keys).where(tables.keys.c.id == old.id).values(expires_at=end))
        _record(connection, actor, "key.rotate", new.key, owner, old_expires_at=end)
    return new


def list_keys(database: Database, *, organisation_id: str | None = None, project_id: str | None = None) -> list[Key]:
    """Every key ever made there, oldest first."""
    query = _SELECT.order_by(tables.keys.c.created_at, tables.keys.c.id)
    if organisation_id is not None:
        query = query.where(tables.projects.c.organisation_id == organisation_id)
    if project_id is not None:
        query = query.where(tables.keys.c.project_id == project_id)
    with database.read() as connection:
        return [_key(row) for row in connection.execute(query)]


def revoke_key(database: Database, actor: Actor, key_id: str, *, organisation_id: str | None = None) -> Key:
    """End a key for good; revoking twice keeps the first time. Raises NotFound."""
    with database.write() as connection:
        key, owner = _find(connection, key_id, organisation_id)
        if key.revoked_at is None:
            connection.execute(
                sa.update(tables.keys).where(tables.keys.c.id == key_id).values(revoked_at=int(time.time()))
            )
            _record(connection, actor, "key.revoke", key, owner)
        return _find(connection, key_id, organisation_id)[0]


_COLUMNS = [
    tables.keys.c[name]
    for name in (
        *("id", "name", "prefix", "project_id", "created_at", "last_used_at", "expires_at", "revoked_at"),
        *("access", "models", "routes", "replaces", "service_account_id"),
    )
]
_SELECT = sa.select(*_COLUMNS, tables.projects.c.organisation_id).join(
    tables.projects, tables.keys.c.project_id == tables.projects.c.id
)


def _key(row: Any) -> Key:
    values = {column.name: row._mapping[column.name] for column in _COLUMNS}
    values |= {name: scopes.from_column(values[name]) for name in ("models", "routes")}
    return Key(**values)


def _find(connection: sa.Connection, key_id: str, organisation_id: str | None) -> tuple[Key, str]:
    """The key and its organisation."""
    query = _SELECT.where(tables.keys.c.id == key_id)
    if organisation_id is not None:
        query = query.where(tables.projects.c.organisation_id == organisation_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"there is no key {key_id[:80]!r}; `musespark keys list` shows the ids")
    return _key(row), row.organisation_id


def _project(connection: sa.Connection, options: KeyOptions) -> organisations.Project:
    project = _any_project(connection, options)
    if project.archived_at is not None:
        raise Conflict(f"the project {project.id} is archived; none of its keys works")
    return project


def _any_project(connection: sa.Connection, options: KeyOptions) -> organisations.Project:
    if options.service_account_id is not None:
        account = service_account_of(connection, options.organisation_id, options.service_account_id)
        if options.project_id not in (None, account.project_id):
            raise InvalidRequest("the service account belongs to another project", param="project_id")
        if account.disabled_at is not None:
            raise Conflict(f"the service account {account.id} is disabled")
        return organisations.project_by_id(connection, account.project_id)
    if options.project_id is None:
        return organisations.default_project(connection, options.organisation_id)
    if options.organisation_id is None:
        return organisations.project_by_id(connection, options.project_id)
    return organisations.project_of(connection, options.organisation_id, options.project_id)


def _fresh(expires_at: int | None = None) -> dict[str, Any]:
    """The fields that every new key begins with; `_insert` knows its prefix."""
    return {
        "id": new_id("key"),
        "prefix": "",
        "created_at": int(time.time()),
        "last_used_at": None,
        "expires_at": expires_at,
        "revoked_at": None,
    }


def _insert(connection: sa.Connection, pepper: Pepper, key: Key) -> NewKey:
    secret = new_secret()
    key = dataclasses.replace(key, prefix=display_prefix(secret))
    values = {column.name: getattr(key, column.name) for column in _COLUMNS}
    values |= {name: scopes.to_column(values[name]) for name in ("models", "routes")}
    connection.execute(sa.insert(tables.keys).values(**values, digest=pepper.key_digest(secret), pepper_id=pepper.id))
    return NewKey(key, secret)


def _record(
    connection: sa.Connection, actor: Actor, action: str, key: Key, organisation_id: str, **details: object
) -> None:
    shown = {"name": key.name, "prefix": key.prefix, "project_id": key.project_id, "access": key.access}
    extra = {"models": key.models, "routes": key.routes, "replaces": key.replaces, "expires_at": key.expires_at}
    audit.record(
        connection,
        actor,
        action,
        key.id,
        organisation_id=organisation_id,
        **shown,
        **{name: value for name, value in (extra | details).items() if value is not None},
    )
