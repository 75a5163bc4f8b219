"""People and their roles in organisations: inviting, accepting, changing roles, leaving.

An invitation is a secret link, shown once to whoever invites; there is no mail server here. Nobody can give a role that
can do more than they can, nor change somebody who has one, and an organisation always keeps an owner.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from musespark.accounts import audit, passwords, scopes, tables
from musespark.accounts.actor import Actor
from musespark.accounts.database import Database
from musespark.accounts.names import checked_name
from musespark.accounts.organisations import find_organisation
from musespark.accounts.scopes import ROLE_PERMISSIONS, Role
from musespark.accounts.secret import Pepper, new_id, new_token
from musespark.errors import Conflict, InvalidRequest, NotFound, SignInFailed

INVITATION_S = 7 * 86_400
_EMAIL = re.compile(r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})+")  # HTML's, bounded


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody in an organisation. Times are UTC seconds since 1970."""

    person_id: str
    email: str
    name: str
    role: Role
    created_at: int


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


def checked_email(email: str) -> str:
    """In lower case, since people don't tell cases apart. Raises InvalidRequest."""
    email = email.strip().lower()
    if len(email) > 254 or not _EMAIL.fullmatch(email):
        raise InvalidRequest(f"{email[:80]!r} is not an email address", param="email")
    return email


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
        if any(member.email == email for member in _members(connection, organisation_id)):
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
        stored = None if row is None else _stored_hash(connection, row.email)
        is_known = row is not None and _person_id(connection, row.email) is not None
    # Hashing takes a tenth of a second: never under the write lock.
    if is_known and not passwords.matches(stored, password):
        raise SignInFailed("you have an account already: give its password, or sign in as you usually do")
    hashed = None if is_known else passwords.hash_password(password)
    now = int(time.time())
    with database.write() as connection:
        row = connection.execute(sa.select(table).where((table.c.digest == digest) & _is_open(now))).one_or_none()
        if row is None:
            raise SignInFailed("this invitation is not known, was used already, or has expired; ask for another")
        person_id = _person_id(connection, row.email)
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


def list_members(database: Database, organisation_id: str) -> list[Member]:
    """By email."""
    with database.read() as connection:
        find_organisation(connection, organisation_id)
        return _members(connection, organisation_id)


def change_role(
    database: Database, actor: Actor, organisation_id: str, person_id: str, role: str, held: Collection[str] | None
) -> Member:
    """Raises NotFound, Conflict for the last owner, InsufficientScope where either role is above one's own."""
    known = scopes.checked_role(role)
    table = tables.memberships
    with database.write() as connection:
        member = _member(connection, organisation_id, person_id)
        for one in (member.role, known):
            scopes.check_may_grant(held, ROLE_PERMISSIONS[one])
        if member.role == "owner" and known != "owner":
            _keep_an_owner(connection, organisation_id)
        mine = (table.c.person_id == person_id) & (table.c.organisation_id == organisation_id)
        connection.execute(sa.update(table).where(mine).values(role=known))
        audit.record(
            connection,
            actor,
            "person.change_role",
            person_id,
            organisation_id=organisation_id,
            before=member.role,
            after=known,
        )
        return _member(connection, organisation_id, person_id)


def remove_member(
    database: Database, actor: Actor, organisation_id: str, person_id: str, held: Collection[str] | None
) -> None:
    """Take somebody out; their sessions in this organisation end. Raises as `change_role` does."""
    table, sessions = tables.memberships, tables.sessions
    with database.write() as connection:
        member = _member(connection, organisation_id, person_id)
        scopes.check_may_grant(held, ROLE_PERMISSIONS[member.role])
        if member.role == "owner":
            _keep_an_owner(connection, organisation_id)
        for owned in (table, sessions):
            mine = (owned.c.person_id == person_id) & (owned.c.organisation_id == organisation_id)
            change = sa.delete(owned) if owned is table else sa.update(owned).values(ended_at=int(time.time()))
            connection.execute(change.where(mine))
        audit.record(connection, actor, "person.remove", person_id, organisation_id=organisation_id, email=member.email)


def add_person(database: Database, actor: Actor, email: str, name: str, password: str | None, *, operator: bool) -> str:
    """Make a person without an invitation: for the owner of the machine, whose first operator has nobody to ask."""
    email, name = checked_email(email), checked_name(name, "a person's")
    hashed = None if password is None else passwords.hash_password(password)
    with database.write() as connection:
        if _person_id(connection, email) is not None:
            raise Conflict(f"there is a person {email} already", param="email")
        person_id = insert_person(connection, email, name, hashed, operator=operator)
        audit.record(connection, actor, "person.add", person_id, email=email, operator=operator)
    return person_id


def add_member(database: Database, actor: Actor, organisation_id: str, email: str, role: str) -> Member:
    """Put a known person into an organisation, for the owner of the machine. Raises NotFound, Conflict."""
    email, known = checked_email(email), scopes.checked_role(role)
    with database.write() as connection:
        find_organisation(connection, organisation_id)
        person_id = _person_id(connection, email)
        if person_id is None:
            raise NotFound(f"there is no person {email}")
        if any(member.person_id == person_id for member in _members(connection, organisation_id)):
            raise Conflict(f"{email} is a member already", param="email")
        connection.execute(
            sa.insert(tables.memberships).values(
                person_id=person_id, organisation_id=organisation_id, role=known, created_at=int(time.time())
            )
        )
        audit.record(connection, actor, "person.join", person_id, organisation_id=organisation_id, role=known)
        return _member(connection, organisation_id, person_id)


def set_password(database: Database, actor: Actor, email: str, password: str) -> None:
    """Give somebody a new password and end their sessions. Raises NotFound."""
    email, hashed = checked_email(email), passwords.hash_password(password)
    people, sessions = tables.people, tables.sessions
    with database.write() as connection:
        person_id = _person_id(connection, email)
        if person_id is None:
            raise NotFound(f"there is no person {email}")
        connection.execute(sa.update(people).where(people.c.id == person_id).values(password_hash=hashed))
        mine = (sessions.c.person_id == person_id) & sessions.c.ended_at.is_(None)
        connection.execute(sa.update(sessions).where(mine).values(ended_at=int(time.time())))
        audit.record(connection, actor, "person.set_password", person_id, email=email)


def insert_person(
    connection: sa.Connection, email: str, name: str, password_hash: str | None, *, operator: bool = False
) -> str:
    person_id = new_id("person")
    connection.execute(
        sa.insert(tables.people).values(
            id=person_id,
            email=email,
            name=name,
            password_hash=password_hash,
            operator=operator,
            created_at=int(time.time()),
        )
    )
    return person_id


def _members(connection: sa.Connection, organisation_id: str) -> list[Member]:
    people, members = tables.people, tables.memberships
    query = (
        sa.select(people.c.id.label("person_id"), people.c.email, people.c.name, members.c.role, members.c.created_at)
        .join(members, members.c.person_id == people.c.id)
        .where(members.c.organisation_id == organisation_id)
        .order_by(people.c.email)
    )
    return [Member(**row._mapping) for row in connection.execute(query)]


def _member(connection: sa.Connection, organisation_id: str, person_id: str) -> Member:
    for member in _members(connection, organisation_id):
        if member.person_id == person_id:
            return member
    raise NotFound(f"there is no person {person_id[:80]!r} in {organisation_id[:80]!r}")


def _keep_an_owner(connection: sa.Connection, organisation_id: str) -> None:
    if sum(member.role == "owner" for member in _members(connection, organisation_id)) < 2:
        raise Conflict("this is the last owner of the organisation; make somebody else an owner first")


def _person_id(connection: sa.Connection, email: str) -> str | None:
    return connection.scalar(sa.select(tables.people.c.id).where(tables.people.c.email == email))


def _stored_hash(connection: sa.Connection, email: str) -> str | None:
    return connection.scalar(sa.select(tables.people.c.password_hash).where(tables.people.c.email == email))


def _is_open(now: int) -> sa.ColumnElement[bool]:
    table = tables.invitations
    return table.c.accepted_at.is_(None) & table.c.revoked_at.is_(None) & (table.c.expires_at > now)
