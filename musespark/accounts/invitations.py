"""Invitations: how people come into an organisation.

An invitation is a secret, shown once to whoever invites; there is no mail server here. With it a new person chooses a
password; who has an account already must prove that it is theirs.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from musespark.accounts import audit, passwords, scopes, tables
from musespark.accounts.actor import Actor
from musespark.accounts.database import Database
from musespark.accounts.names import checked_name
from musespark.accounts.organisations import find_organisation
from musespark.accounts.people import checked_email, insert_person, members_of, person_by_email, stored_hash
from musespark.accounts.scopes import ROLE_PERMISSIONS, Role
from musespark.accounts.secret import Pepper, new_id, new_token
from musespark.errors import Conflict, NotFound, SignInFailed

INVITATION_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Invitation:
    id: str
    organisation_id: str
    email: str
    role: Role
    created_at: int
    expires_at: int
    accepted_at: int | None
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class NewInvitation:
    """`token` is shown once, to be sent to the person; with it they choose a password."""

    invitation: Invitation
    token: str

    def __repr__(self) -> str:
        return f"NewInvitation(invitation={self.invitation!r}, token='…')"


def invite(
    database: Database,
    pepper: Pepper,
    actor: Actor,
    organisation_id: str,
    email: str,
    role: str,
    held: Collection[str] | None,
) -> NewInvitation:
    """Raises InvalidRequest, NotFound, Conflict for a member, and InsufficientScope for a role above one's own."""
    email, known = checked_email(email), scopes.checked_role(role)
    scopes.check_may_grant(held, ROLE_PERMISSIONS[known])
    token, now = new_token("inv-muse-"), int(time.time())
    invitation = Invitation(new_id("invite"), organisation_id, email, known, now, now + INVITATION_S, None, None)
    table = tables.invitations
    with database.write() as connection:
        find_organisation(connection, organisation_id)
        if any(member.email == email for member in members_of(connection, organisation_id)):
            raise Conflict(f"{email} is a member already", param="email")
        open_ones = (table.c.organisation_id == organisation_id) & (table.c.email == email) & _is_open(now)
        connection.execute(sa.update(table).where(open_ones).values(revoked_at=now))  # the newest link counts
        values = {name: getattr(invitation, name) for name in Invitation.__slots__}
        digest = pepper.token_digest("invitation", token)
        connection.execute(sa.insert(table).values(**values, digest=digest))
        audit.record(
            connection, actor, "person.invite", invitation.id, organisation_id=organisation_id, email=email, role=role
        )
    return NewInvitation(invitation, token)


def list_invitations(database: Database, organisation_id: str) -> list[Invitation]:
    """Newest first, the used and revoked ones too."""
    table = tables.invitations
    query = sa.select(*(table.c[name] for name in Invitation.__slots__)).where(
        table.c.organisation_id == organisation_id
    )
    with database.read() as connection:
        rows = connection.execute(query.order_by(table.c.created_at.desc(), table.c.id))
        return [Invitation(**row._mapping) for row in rows]


def revoke_invitation(database: Database, actor: Actor, organisation_id: str, invitation_id: str) -> None:
    """Raises NotFound where there is no open invitation of this organisation."""
    table, now = tables.invitations, int(time.time())
    mine = (table.c.id == invitation_id) & (table.c.organisation_id == organisation_id) & _is_open(now)
    with database.write() as connection:
        if connection.execute(sa.update(table).where(mine).values(revoked_at=now)).rowcount == 0:
            raise NotFound(f"there is no open invitation {invitation_id[:80]!r}")
        audit.record(connection, actor, "person.uninvite", invitation_id, organisation_id=organisation_id)


def accept_with_password(
    database: Database, pepper: Pepper, token: str, name: str, password: str, source: str
) -> tuple[str, str]:
    """Join the organisation of the invitation; returns (person, organisation).

    Who is known already gives their password, not a new one. Raises SignInFailed for a wrong or used token.
    """
    name = checked_name(name, "a person's")
    passwords.checked_password(password)
    digest = pepper.token_digest("invitation", token)
    table = tables.invitations
    with database.read() as connection:
        row = connection.execute(sa.select(table).where(table.c.digest == digest)).one_or_none()
        stored = None if row is None else stored_hash(connection, row.email)
        is_known = row is not None and person_by_email(connection, row.email) is not None
    # Hashing takes a tenth of a second: never under the write lock.
    if is_known and not passwords.matches(stored, password):
        raise SignInFailed("you have an account already: give its password, or sign in as you usually do")
    hashed = None if is_known else passwords.hash_password(password)
    now = int(time.time())
    with database.write() as connection:
        row = connection.execute(sa.select(table).where((table.c.digest == digest) & _is_open(now))).one_or_none()
        if row is None:
            raise SignInFailed("this invitation is not known, was used already, or has expired; ask for another")
        person_id = person_by_email(connection, row.email)
        if (person_id is not None) != is_known:
            raise Conflict("this account was changed a moment ago; try again")
        if person_id is None:
            person_id = insert_person(connection, row.email, name, hashed)
        join(connection, person_id, row.email, row, source)
    return person_id, row.organisation_id


def join(connection: sa.Connection, person_id: str, email: str, invitation: sa.Row, source: str) -> None:
    """Use up an open invitation, in the caller's transaction."""
    now, table, members = int(time.time()), tables.invitations, tables.memberships
    connection.execute(sa.update(table).where(table.c.id == invitation.id).values(accepted_at=now))
    mine = (members.c.person_id == person_id) & (members.c.organisation_id == invitation.organisation_id)
    if connection.execute(sa.select(members).where(mine)).one_or_none() is None:
        connection.execute(
            sa.insert(members).values(
                person_id=person_id,
                organisation_id=invitation.organisation_id,
                role=invitation.role,
                created_at=now,
            )
        )
    actor = Actor("person", person_id, email, source)
    audit.record(
        connection,
        actor,
        "person.join",
        person_id,
        organisation_id=invitation.organisation_id,
        role=invitation.role,
        invitation=invitation.id,
    )


def open_invitations(connection: sa.Connection, email: str) -> list[sa.Row]:
    table = tables.invitations
    query = sa.select(table).where((table.c.email == email) & _is_open(int(time.time()))).order_by(table.c.created_at)
    return list(connection.execute(query))


def _is_open(now: int) -> sa.ColumnElement[bool]:
    table = tables.invitations
    return table.c.accepted_at.is_(None) & table.c.revoked_at.is_(None) & (table.c.expires_at > now)
