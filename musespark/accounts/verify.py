"""Who is calling: turns the secret of a request into an Identity, or refuses it.

A verified key is remembered for `CACHE_S`, so a busy key costs one HMAC per request and two indexed reads per second.
That is also the longest time for which another process's revocation can go unseen; one made here is seen at once.
While the database is away, keys that it vouched for in the last `OUTAGE_S` go on working; nobody can revoke them then.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import InterfaceError, OperationalError

from musespark.accounts import scopes, tables
from musespark.accounts.database import Database
from musespark.accounts.secret import Pepper, is_well_formed
from musespark.errors import (
    DatabaseUnavailable,
    ExpiredApiKey,
    InsufficientScope,
    InvalidApiKey,
    MalformedApiKey,
    RevokedApiKey,
)

CACHE_S = 0.5
CACHE_ENTRIES = 4096
LAST_USED_RESOLUTION_S = 60  # a write per request would make the database the bottleneck
OUTAGE_S = 600
AWAY = (OperationalError, InterfaceError, sa.exc.TimeoutError)  # what a database that can't be reached raises
RETRY_AFTER_MS = 1000


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose request it is. `cache_salt` is the organisation's and secret: prefixes are shared under one salt only.

    permissions: what it may do, its scopes taken into account; `models` None is all that it is admitted to.
    internal: whether the organisation is of those who run the server. `name` is the key's, or the person's email.
    kind: "person" for somebody signed in; `key_id` is the session's id then.
    """

    key_id: str
    project_id: str
    organisation_id: str
    cache_salt: bytes
    permissions: frozenset[str] = frozenset()
    models: frozenset[str] | None = None
    internal: bool = False
    name: str = ""
    kind: Literal["key", "person"] = "key"
    person_id: str | None = None

    def __repr__(self) -> str:
        return f"Identity(key_id={self.key_id!r})"

    @property
    def operates(self) -> bool:
        """Whether all organisations are in its hands."""
        return "organisations.write" in self.permissions

    def require(self, permission: str) -> None:
        """Raise InsufficientScope if it may not."""
        if permission not in self.permissions:
            who = "this key" if self.kind == "key" else self.name
            raise InsufficientScope(f"{who} may not do this: it lacks the permission {permission}")


@dataclass(frozen=True, slots=True)
class _Entry:
    identity: Identity
    expires_at: int | None
    verified: float  # on the monotonic clock
    fresh_until: float  # the same


class KeyVerifier:
    """Thread-safe. `now` is the wall clock in UTC seconds; tests turn it."""

    def __init__(self, database: Database, pepper: Pepper, *, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._pepper = pepper
        self._now = now
        self._cache: OrderedDict[bytes, _Entry] = OrderedDict()  # by digest, oldest first; never by the secret
        self._generation = 0  # grows at a revocation: what was read before it must not be remembered after it
        self._lock = threading.Lock()

    def remembered(self, secret: str) -> Identity | None:
        """The identity if the key was verified a moment ago; never blocks on the database."""
        with self._lock:
            entry = self._cache.get(self._pepper.key_digest(secret))
        if entry is None or time.monotonic() >= entry.fresh_until:
            return None
        return None if _expired(entry.expires_at, self._now()) else entry.identity

    def verify(self, secret: str) -> Identity:
        """Look the key up. Blocks on the database; raises InvalidApiKey, whose message never holds the secret.

        Raises DatabaseUnavailable if the database can't be reached and the key is not remembered.
        """
        if not is_well_formed(secret):
            raise MalformedApiKey(
                "this is not a key of this server: keys look like sk-muse-… and are 57 characters long; is it cut off?"
            )
        identity = self.remembered(secret)
        if identity is not None:
            return identity
        digest = self._pepper.key_digest(secret)
        with self._lock:
            generation = self._generation
        try:
            row = self._look_up(digest)
        except AWAY:
            return self._without_database(digest)
        # The index compared digests, not secrets; comparing again in constant time costs nothing and needs no argument.
        if row is None or not hmac.compare_digest(row.digest, digest):
            raise InvalidApiKey("this key is not known here; `musespark keys create` makes one")
        self._check(row)
        identity = self._identity(row)
        now = time.monotonic()
        self._remember(digest, _Entry(identity, row.expires_at, now, now + CACHE_S), generation)
        self._note_use(row.id, row.last_used_at)
        return identity

    def _look_up(self, digest: bytes) -> sa.Row[Any] | None:
        keys, projects, organisations = tables.keys, tables.projects, tables.organisations
        accounts = tables.service_accounts
        query = (
            sa.select(
                keys,
                projects.c.organisation_id,
                projects.c.archived_at,
                organisations.c.internal,
                organisations.c.suspended_at,
                accounts.c.disabled_at,
            )
            .join(projects, keys.c.project_id == projects.c.id)
            .join(organisations, projects.c.organisation_id == organisations.c.id)
            .outerjoin(accounts, keys.c.service_account_id == accounts.c.id)
            .where(keys.c.digest == digest)
        )
        with self._database.read() as connection:
            return connection.execute(query).one_or_none()

    def _check(self, row: sa.Row[Any]) -> None:
        if row.revoked_at is not None:
            raise RevokedApiKey(f"the key {row.prefix}… was revoked; `musespark keys create` makes a new one")
        for ended, what in (
            (row.disabled_at, "service account was disabled"),
            (row.archived_at, "project was archived"),
            (row.suspended_at, "organisation is suspended"),
        ):
            if ended is not None:
                raise RevokedApiKey(f"the key {row.prefix}… does not work: its {what}")
        if _expired(row.expires_at, self._now()):
            raise ExpiredApiKey(f"the key {row.prefix}… has expired; `musespark keys create` makes a new one")

    def _identity(self, row: sa.Row[Any]) -> Identity:
        models, routes = scopes.from_column(row.models), scopes.from_column(row.routes)
        return Identity(
            key_id=row.id,
            project_id=row.project_id,
            organisation_id=row.organisation_id,
            cache_salt=self._pepper.cache_salt(row.organisation_id),
            permissions=scopes.permissions_of_key(row.access, routes, internal=row.internal),
            models=None if models is None else frozenset(models),
            internal=row.internal,
            name=row.name,
        )

    def _without_database(self, digest: bytes) -> Identity:
        """What the database said last, if that is not too long ago."""
        now = time.monotonic()
        with self._lock:
            entry = self._cache.get(digest)
            if entry is None or now - entry.verified >= OUTAGE_S or _expired(entry.expires_at, self._now()):
                raise DatabaseUnavailable(
                    "the database can't be reached, and without it keys can't be checked; try again in a moment",
                    retry_after_ms=RETRY_AFTER_MS,
                )
            self._cache[digest] = replace(entry, fresh_until=now + CACHE_S)
        return entry.identity

    def forget_all(self) -> None:
        """Ask the database again from now on; called after a revocation."""
        with self._lock:
            self._generation += 1
            self._cache.clear()

    def _remember(self, digest: bytes, entry: _Entry, generation: int) -> None:
        with self._lock:
            if generation != self._generation:
                return
            self._cache[digest] = entry
            self._cache.move_to_end(digest)
            while len(self._cache) > CACHE_ENTRIES:
                self._cache.popitem(last=False)

    def _note_use(self, key_id: str, last_used_at: int | None) -> None:
        now = int(self._now())
        if last_used_at is not None and now - last_used_at < LAST_USED_RESOLUTION_S:
            return
        try:
            with self._database.write() as connection:
                connection.execute(sa.update(tables.keys).where(tables.keys.c.id == key_id).values(last_used_at=now))
        except AWAY:
            pass  # a full disk or a long writer must not turn a good key away; the next look-up tries again


def _expired(expires_at: int | None, now: float) -> bool:
    return expires_at is not None and now >= expires_at
