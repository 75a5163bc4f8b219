"""Sessions of people who have signed in: a random cookie, of which the database has only the HMAC.

Every request looks its session up, so ending one, taking somebody's role away or disabling them works at once, on every
replica. The CSRF token is derived from the cookie: a page of another site can send the cookie, and not know the token.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from musespark.accounts import organisations, tables
from musespark.accounts.database import Database
from musespark.accounts.scopes import OPERATOR, ROLE_PERMISSIONS, Role
from musespark.accounts.secret import Pepper, new_id, new_token
from musespark.accounts.verify import AWAY, RETRY_AFTER_MS, Identity
from musespark.errors import DatabaseUnavailable, NotFound, PermissionDenied, SignInFailed

LONGEST_S = 7 * 86_400
IDLE_S = 12 * 3600
KEPT_S = 30 * 86_400
SEEN_RESOLUTION_S = 60


@dataclass(frozen=True, slots=True)
class NewSession:
    """`token` goes into the cookie and nowhere else; `csrf_token` into the page."""

    id: str
    token: str
    csrf_token: str
    person_id: str
    organisation_id: str
    expires_at: int

    def __repr__(self) -> str:
        return f"NewSession(id={self.id!r})"


@dataclass(frozen=True, slots=True)
class Place:
    """An organisation that somebody may work in."""

    organisation_id: str
    name: str
    role: Role


class Sessions:
    """Thread-safe; every call reads or writes the database. `now` is the wall clock in UTC seconds; tests turn it."""

    def __init__(self, database: Database, pepper: Pepper, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._pepper = pepper
        self._now = now

    def begin(self, person_id: str, source: str, organisation_id: str | None = None) -> NewSession:
        """A new session in the given organisation, else in the person's first one. Raises SignInFailed."""
        token, now = new_token("ses-muse-"), int(self._now())
        with self._database.write() as connection:
            organisations.default_project(connection)  # the very first person may come before the first key
            places = _places(connection, person_id)
            if organisation_id is not None:
                places = [place for place in places if place.organisation_id == organisation_id]
            if not places:
                raise SignInFailed("you are in no organisation; ask for an invitation")
            session_id, chosen = new_id("sess"), places[0].organisation_id
            # Where somebody signed in from is nobody's business after a while; the audit log has what they did.
            connection.execute(sa.delete(tables.sessions).where(tables.sessions.c.expires_at < now - KEPT_S))
            connection.execute(
                sa.insert(tables.sessions).values(
                    id=session_id,
                    digest=self._pepper.token_digest("session", token),
                    person_id=person_id,
                    organisation_id=chosen,
                    created_at=now,
                    last_seen_at=now,
                    expires_at=now + LONGEST_S,
                    source=source[:200],
                )
            )
        return NewSession(session_id, token, self.csrf_token(token), person_id, chosen, now + LONGEST_S)

    def verify(self, token: str) -> Identity:
        """Who has signed in. Raises SignInFailed for a session that is unknown, over, or of somebody who is out."""
        sessions, people = tables.sessions, tables.people
        members, owners = tables.memberships, tables.organisations
        query = (
            sa.select(
                sessions,
                people.c.email,
                people.c.operator,
                people.c.disabled_at,
                members.c.role,
                owners.c.internal,
                owners.c.suspended_at,
            )
            .join(people, sessions.c.person_id == people.c.id)
            .join(owners, sessions.c.organisation_id == owners.c.id)
            .outerjoin(
                members,
                (members.c.person_id == sessions.c.person_id) & (members.c.organisation_id == owners.c.id),
            )
            .where(sessions.c.digest == self._pepper.token_digest("session", token))
        )
        try:
            with self._database.read() as connection:
                row = connection.execute(query).one_or_none()
                if row is not None:
                    project = _first_project(connection, row.organisation_id)
        except AWAY:
            raise DatabaseUnavailable("the database can't be reached", retry_after_ms=RETRY_AFTER_MS) from None
        now = self._now()
        if (
            row is None
            or row.ended_at is not None
            or row.disabled_at is not None
            or now >= row.expires_at
            or now >= row.last_seen_at + IDLE_S
            or (row.role is None and not row.operator)
        ):
            raise SignInFailed("you are not signed in, or no longer; sign in again")
        if row.suspended_at is not None and not row.operator:
            raise SignInFailed("this organisation is suspended; ask the operator of the server")
        self._note_seen(row.id, row.last_seen_at)
        # A browser must never spend an organisation's money by itself: generating needs a key.
        granted = OPERATOR if row.operator else ROLE_PERMISSIONS[row.role]
        return Identity(
            key_id=row.id,
            project_id=project,
            organisation_id=row.organisation_id,
            cache_salt=self._pepper.cache_salt(row.organisation_id),
            permissions=granted - {"chat.write"},
            internal=row.internal,
            name=row.email,
            kind="person",
            person_id=row.person_id,
        )

    def csrf_token(self, token: str) -> str:
        return self._pepper.token_digest("csrf", token).hex()

    def check_csrf(self, token: str, given: str | None) -> None:
        """Raise PermissionDenied unless `given` is this session's CSRF token."""
        if given is None or not hmac.compare_digest(given.encode(), self.csrf_token(token).encode()):
            raise PermissionDenied(
                "a signed-in person changes things with the header x-csrf-token, which GET /v1/auth/session gives"
            )

    def places(self, person_id: str) -> list[Place]:
        with self._database.read() as connection:
            return _places(connection, person_id)

    def switch(self, session_id: str, person_id: str, organisation_id: str) -> None:
        """Work in another organisation of one's own. Raises NotFound."""
        table = tables.sessions
        with self._database.write() as connection:
            if organisation_id not in {place.organisation_id for place in _places(connection, person_id)}:
                raise NotFound(f"there is no organisation {organisation_id[:80]!r} that you are in")
            connection.execute(sa.update(table).where(table.c.id == session_id).values(organisation_id=organisation_id))

    def end(self, session_id: str) -> None:
        table = tables.sessions
        with self._database.write() as connection:
            connection.execute(
                sa.update(table)
                .where(table.c.id == session_id, table.c.ended_at.is_(None))
                .values(ended_at=int(self._now()))
            )

    def _note_seen(self, session_id: str, last_seen_at: int) -> None:
        now, table = int(self._now()), tables.sessions
        if now - last_seen_at < SEEN_RESOLUTION_S:
            return
        with self._database.write() as connection:
            connection.execute(sa.update(table).where(table.c.id == session_id).values(last_seen_at=now))


def _places(connection: sa.Connection, person_id: str) -> list[Place]:
    """Oldest first. An operator may work in every organisation, and starts in one of the operator's own."""
    members, owners = tables.memberships, tables.organisations
    query = (
        sa.select(owners.c.id, owners.c.name, members.c.role)
        .join(members, members.c.organisation_id == owners.c.id)
        .where(members.c.person_id == person_id)
        .order_by(members.c.created_at, owners.c.id)
    )
    found = [Place(*row) for row in connection.execute(query)]
    if connection.scalar(sa.select(tables.people.c.operator).where(tables.people.c.id == person_id)):
        mine = {place.organisation_id for place in found}
        every = sa.select(owners.c.id, owners.c.name).order_by(owners.c.internal.desc(), owners.c.created_at)
        found += [Place(row.id, row.name, "owner") for row in connection.execute(every) if row.id not in mine]
    return found


def _first_project(connection: sa.Connection, organisation_id: str) -> str:
    projects = tables.projects.c
    query = sa.select(projects.id).where(projects.organisation_id == organisation_id)
    return connection.scalar(query.order_by(*organisations.OLDEST_PROJECT).limit(1)) or ""
