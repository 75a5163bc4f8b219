"""People and their roles in organisations: who is in, changing roles, leaving. How they come in is in invitations.py.

Nobody can give a role that can do more than they can, nor change somebody who has one, and an organisation always keeps
an owner.
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
from musespark.accounts.secret import new_id
from musespark.errors import Conflict, InvalidRequest, NotFound

_EMAIL = re.compile(r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})+")  # HTML's, bounded


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody in an organisation. Times are UTC seconds since 1970."""

    person_id: str
    email: str
    name: str
    role: Role
    created_at: int


def checked_email(email: str) -> str:
    """In lower case, since people don't tell cases apart. Raises InvalidRequest."""
    email = email.strip().lower()
    if len(email) > 254 or not _EMAIL.fullmatch(email):
        raise InvalidRequest(f"{email[:80]!r} is not an email address", param="email")
    return email


def list_members(database: Database, organisation_id: str) -> list[Member]:
    """By email."""
    with database.read() as connection:
        find_organisation(connection, organisation_id)
        return members_of(connection, organisation_id)


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
        if person_by_email(connection, email) is not None:
            raise Conflict(f"there is a person {email} already", param="email")
        person_id = insert_person(connection, email, name, hashed, operator=operator)
        audit.record(connection, actor, "person.add", person_id, email=email, operator=operator)
    return person_id


def add_member(database: Database, actor: Actor, organisation_id: str, email: str, role: str) -> Member:
    """Put a known person into an organisation, for the owner of the machine. Raises NotFound, Conflict."""
    email, known = checked_email(email), scopes.checked_role(role)
    with database.write() as connection:
        find_organisation(connection, organisation_id)
        person_id = person_by_email(connection, email)
        if person_id is None:
            raise NotFound(f"there is no person {email}")
        if any(member.person_id == person_id for member in members_of(connection, organisation_id)):
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
        person_id = person_by_email(connection, email)
        if person_id is None:
            raise NotFound(f"there is no person {email}")
        connection.execute(sa.update(people).where(people.c.id == person_id).values(password_hash=hashed))
        mine = (sessions.c.person_id == person_id) & sessions.c.ended_at.is_(None)
        connection.execute(sa.update(sessions).where(mine).values(ended_at=int(time.time())))
        audit.record(connection, actor, "person.set_password", person_id, email=email)


def set_disabled(database: Database, actor: Actor, email: str, disabled: bool) -> None:
    """Keep somebody out of every organisation, however they sign in, or let them in again. Raises NotFound."""
    email, table = checked_email(email), tables.people
    with database.write() as connection:
        person_id = person_by_email(connection, email)
        if person_id is None:
            raise NotFound(f"there is no person {email}")
        at = int(time.time()) if disabled else None
        connection.execute(sa.update(table).where(table.c.id == person_id).values(disabled_at=at))
        audit.record(connection, actor, "person.disable" if disabled else "person.enable", person_id, email=email)


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


def members_of(connection: sa.Connection, organisation_id: str) -> list[Member]:
    people, members = tables.people, tables.memberships
    query = (
        sa.select(people.c.id.label("person_id"), people.c.email, people.c.name, members.c.role, members.c.created_at)
        .join(members, members.c.person_id == people.c.id)
        .where(members.c.organisation_id == organisation_id)
        .order_by(people.c.email)
    )
    return [Member(**row._mapping) for row in connection.execute(query)]


def _member(connection: sa.Connection, organisation_id: str, person_id: str) -> Member:
    for member in members_of(connection, organisation_id):
        if member.person_id == person_id:
            return member
    raise NotFound(f"there is no person {person_id[:80]!r} in {organisation_id[:80]!r}")


def _keep_an_owner(connection: sa.Connection, organisation_id: str) -> None:
    if sum(member.role == "owner" for member in members_of(connection, organisation_id)) < 2:
        raise Conflict("this is the last owner of the organisation; make somebody else an owner first")


def person_by_email(connection: sa.Connection, email: str) -> str | None:
    return connection.scalar(sa.select(tables.people.c.id).where(tables.people.c.email == email))


def stored_hash(connection: sa.Connection, email: str) -> str | None:
    return connection.scalar(sa.select(tables.people.c.password_hash).where(tables.people.c.email == email))
