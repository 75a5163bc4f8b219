"""Who is calling: turns the secret of a request into an Identity, or refuses it.

A verified key is remembered for `CACHE_S`, so a busy key costs one HMAC per request and two indexed reads per second.
That is also the longest time for which another process's revocation can go unseen; one made here is seen at once.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from musespark.accounts import tables
from musespark.accounts.database import Database
from musespark.accounts.secret import Pepper, is_well_formed
from musespark.errors import InvalidApiKey

CACHE_S = 0.5
CACHE_ENTRIES = 4096
LAST_USED_RESOLUTION_S = 60  # a write per request would make the database the bottleneck


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose request it is. `cache_salt` is the organisation's and secret: prefixes are shared under one salt only."""

    key_id: str
    project_id: str
    organisation_id: str
    cache_salt: bytes

    def __repr__(self) -> str:
        return f"Identity(key_id={self.key_id!r})"


@dataclass(frozen=True, slots=True)
class _Entry:
    identity: Identity
    expires_at: int | None
    fresh_until: float  # on the monotonic clock


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
        """Look the key up. Blocks on the database; raises InvalidApiKey, whose message never holds the secret."""
        if not is_well_formed(secret):
            raise InvalidApiKey("this is not a key of this server: keys look like sk-muse-… and are 57 characters long")
        identity = self.remembered(secret)
        if identity is not None:
            return identity
        digest = self._pepper.key_digest(secret)
        with self._lock:
            generation = self._generation
        keys, projects = tables.keys, tables.projects
        query = (
            sa.select(keys, projects.c.organisation_id)
            .join(projects, keys.c.project_id == projects.c.id)
            .where(keys.c.digest == digest)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        # The index compared digests, not secrets; comparing again in constant time costs nothing and needs no argument.
        if row is None or not hmac.compare_digest(row.digest, digest):
            raise InvalidApiKey("this key is not known here; `musespark keys create` makes one")
        if row.revoked_at is not None:
            raise InvalidApiKey(f"the key {row.prefix}… was revoked; `musespark keys create` makes a new one")
        if _expired(row.expires_at, self._now()):
            raise InvalidApiKey(f"the key {row.prefix}… has expired; `musespark keys create` makes a new one")
        identity = Identity(row.id, row.project_id, row.organisation_id, self._pepper.cache_salt(row.organisation_id))
        self._remember(digest, _Entry(identity, row.expires_at, time.monotonic() + CACHE_S), generation)
        self._note_use(row.id, row.last_used_at)
        return identity

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
        except OperationalError:
            pass  # a full disk or a long writer must not turn a good key away; the next look-up tries again


def _expired(expires_at: int | None, now: float) -> bool:
    return expires_at is not None and now >= expires_at
