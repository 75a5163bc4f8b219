"""Signing in by password, and how often that may fail.

An attempt is counted before the password is looked at, and forgotten when it was right: fifty guesses at once get no
further than five in a row. Counted by email (`PER_EMAIL`) and by address (`PER_ADDRESS`); neither is stored in clear.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import sqlalchemy as sa

from musespark.accounts import audit, invitations, passwords, people, tables
from musespark.accounts.actor import Actor
from musespark.accounts.database import Database
from musespark.accounts.secret import Pepper
from musespark.accounts.sessions import NewSession, Sessions
from musespark.errors import InvalidRequest, SignInFailed, TooManySignIns

PER_EMAIL = 5
PER_ADDRESS = 50
WINDOW_S = 900
KEPT_S = 86_400  # how long counters of the past lie about


class SignIn:
    """Thread-safe. Calls take a tenth of a second: never on an event loop. `now` is the wall clock; tests turn it."""

    def __init__(
        self, database: Database, pepper: Pepper, sessions: Sessions, now: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._pepper = pepper
        self._sessions = sessions
        self._now = now

    def with_password(self, email: str, password: str, address: str) -> NewSession:
        """Raises SignInFailed, which does not say what was wrong, and TooManySignIns."""
        try:
            email = people.checked_email(email)
        except InvalidRequest:
            email = ""  # an address that nobody can have; it takes the same time and gets the same answer
        self.count_attempt(address, email)
        table = tables.people
        with self._database.read() as connection:
            row = connection.execute(sa.select(table).where(table.c.email == email)).one_or_none()
        stored = None if row is None or row.disabled_at is not None else row.password_hash
        if not passwords.matches(stored, password) or row is None:
            self._note(Actor("person", "unknown" if row is None else row.id, email, address), "sign_in.fail", email)
            raise SignInFailed("the email or the password is wrong")
        self.forget_attempts(address, email)
        if passwords.outdated(row.password_hash):
            hashed = passwords.hash_password(password)
            with self._database.write() as connection:
                connection.execute(sa.update(table).where(table.c.id == row.id).values(password_hash=hashed))
        session = self._sessions.begin(row.id, address)
        self._note(Actor("person", row.id, email, address), "sign_in.password", email, session.organisation_id)
        return session

    def accept_invitation(self, token: str, name: str, password: str, address: str) -> NewSession:
        """Join an organisation and be signed in there. Guessing tokens is counted like guessing passwords."""
        self.count_attempt(address, None)
        person_id, organisation_id = invitations.accept_with_password(
            self._database, self._pepper, token, name, password, address
        )
        self.forget_attempts(address, None)
        return self._sessions.begin(person_id, address, organisation_id)

    def count_attempt(self, address: str, email: str | None) -> None:
        """Raises TooManySignIns where there were too many failures already."""
        now = int(self._now())
        with self._database.write() as connection:
            table = tables.sign_in_attempts
            connection.execute(sa.delete(table).where(table.c.first_at < now - KEPT_S))
            waits = [self._count(connection, digest, limit, now) for digest, limit in self._counters(address, email)]
        if max(waits) > 0:
            minutes = math.ceil(max(waits) / 60)
            raise TooManySignIns(
                f"too many failed sign-ins; try again in {minutes} minutes", retry_after_ms=max(waits) * 1000
            )

    def forget_attempts(self, address: str, email: str | None) -> None:
        """The last attempt was right: the email's count is gone, and the address gets this one back."""
        table = tables.sign_in_attempts
        with self._database.write() as connection:
            for digest, limit in self._counters(address, email):
                mine = table.c.digest == digest
                if limit == PER_EMAIL:
                    connection.execute(sa.delete(table).where(mine))
                else:
                    connection.execute(sa.update(table).where(mine).values(failures=table.c.failures - 1))

    def _counters(self, address: str, email: str | None) -> list[tuple[bytes, int]]:
        counters = [(self._pepper.token_digest("sign-in-address", address), PER_ADDRESS)]
        if email is not None:
            counters.append((self._pepper.token_digest("sign-in-email", email), PER_EMAIL))
        return counters

    def _count(self, connection: sa.Connection, digest: bytes, limit: int, now: int) -> int:
        """Count one attempt; returns for how many seconds there must be none."""
        table = tables.sign_in_attempts
        mine = table.c.digest == digest
        row = connection.execute(sa.select(table).where(mine)).one_or_none()
        if row is None or now >= row.first_at + WINDOW_S:
            connection.execute(sa.delete(table).where(mine))
            connection.execute(sa.insert(table).values(digest=digest, failures=1, first_at=now))
            return 0
        if row.failures >= limit:
            return int(row.first_at + WINDOW_S - now)
        connection.execute(sa.update(table).where(mine).values(failures=row.failures + 1))
        return 0

    def _note(self, actor: Actor, action: str, email: str, organisation_id: str | None = None) -> None:
        with self._database.write() as connection:
            audit.record(connection, actor, action, actor.id, organisation_id=organisation_id, email=email)
