"""Early access: organisations apply for a release, see their place, and are let in from the front of the line.

Also what operators read of a release: its history, who is invited, who waits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from musespark.accounts import audit, tables
from musespark.accounts.actor import Actor
from musespark.accounts.database import Database
from musespark.accounts.names import LONGEST_TEXT
from musespark.accounts.release_history import find
from musespark.accounts.release_stages import Release
from musespark.accounts.releases import from_row
from musespark.errors import Conflict, InvalidRequest, NotFound


@dataclass(frozen=True, slots=True)
class Application:
    """`place` counts from 1 among those who still wait; None once admitted, by whatever way in."""

    release: str
    organisation_id: str
    applied_at: int
    admitted: bool
    place: int | None
    waiting: int
    note: str


@dataclass(frozen=True, slots=True)
class ReleaseEvent:
    id: int
    at: int
    kind: str
    value_before: str | None
    value_after: str | None
    why: str
    actor_kind: str
    actor_id: str
    actor_name: str


def apply(database: Database, actor: Actor, release_name: str, organisation_id: str, note: str = "") -> Application:
    """Join the line; applying twice keeps the first place. Raises Conflict where there is nothing to wait for.

    The caller has made sure that this organisation may know of the release.
    """
    if len(note) > LONGEST_TEXT or not note.replace("\n", " ").isprintable():
        raise InvalidRequest(f"a note has at most {LONGEST_TEXT:,} printable characters", param="note")
    table = tables.early_access
    with database.write() as connection:
        release = find(connection, release_name)
        stage = release.stage_at(time.time())
        if stage not in ("partner", "waitlist"):
            raise Conflict(f"{release_name} is in stage {stage}; early access is for releases that are to come")
        mine = (table.c.release_name == release_name) & (table.c.organisation_id == organisation_id)
        if connection.execute(sa.select(table.c.id).where(mine)).one_or_none() is None:
            connection.execute(
                sa.insert(table).values(
                    release_name=release_name, organisation_id=organisation_id, note=note, applied_at=int(time.time())
                )
            )
            audit.record(connection, actor, "early_access.apply", release_name, organisation_id=organisation_id)
        return _application(connection, release, organisation_id)


def application(database: Database, release_name: str, organisation_id: str) -> Application:
    """Where an organisation stands. Raises NotFound if it has not applied."""
    with database.read() as connection:
        return _application(connection, find(connection, release_name), organisation_id)


def applications(database: Database, release_name: str) -> list[Application]:
    """Everybody who has applied, in their order."""
    with database.read() as connection:
        release = find(connection, release_name)
        return _applications(connection, release)


def events(database: Database, release_name: str) -> list[ReleaseEvent]:
    """The release's history, oldest first."""
    table = tables.release_events
    with database.read() as connection:
        find(connection, release_name)
        rows = connection.execute(sa.select(table).where(table.c.release_name == release_name).order_by(table.c.id))
        return [ReleaseEvent(**{k: v for k, v in row._mapping.items() if k != "release_name"}) for row in rows]


def slips(database: Database) -> dict[str, list[ReleaseEvent]]:
    """Every slipped launch date, by release: the public page shows them beside the date."""
    table = tables.release_events
    query = sa.select(table).where(table.c.kind == "launch_slipped").order_by(table.c.id)
    found: dict[str, list[ReleaseEvent]] = {}
    with database.read() as connection:
        for row in connection.execute(query):
            event = ReleaseEvent(**{k: v for k, v in row._mapping.items() if k != "release_name"})
            found.setdefault(row.release_name, []).append(event)
    return found


def list_releases(database: Database) -> list[Release]:
    with database.read() as connection:
        rows = connection.execute(sa.select(tables.releases).order_by(tables.releases.c.name))
        return [from_row(row) for row in rows]


def invited(database: Database, release_name: str) -> list[str]:
    """The organisations on the invitation list, in the order of their ids."""
    with database.read() as connection:
        find(connection, release_name)
        return sorted(_invited(connection, release_name))


def aliases(database: Database) -> dict[str, str]:
    with database.read() as connection:
        return {row.alias: row.release_name for row in connection.execute(sa.select(tables.release_aliases))}


def _invited(connection: sa.Connection, release_name: str) -> set[str]:
    table = tables.release_invitations
    return set(connection.scalars(sa.select(table.c.organisation_id).where(table.c.release_name == release_name)))


def _application(connection: sa.Connection, release: Release, organisation_id: str) -> Application:
    for found in _applications(connection, release):
        if found.organisation_id == organisation_id:
            return found
    raise NotFound(f"{organisation_id[:80]!r} has not applied for {release.name}")


def _applications(connection: sa.Connection, release: Release) -> list[Application]:
    """Who is in by an invitation or the ramp does not wait, so the places of those behind move up."""
    table, organisations = tables.early_access, tables.organisations
    query = (
        sa.select(table, organisations.c.internal)
        .join(organisations, table.c.organisation_id == organisations.c.id)
        .where(table.c.release_name == release.name)
        .order_by(table.c.id)
    )
    invited, now = _invited(connection, release.name), time.time()
    place, found = 0, []
    for row in connection.execute(query):
        listed = row.admitted_at is not None or row.organisation_id in invited
        admitted = release.lets_in(row.organisation_id, internal=row.internal, invited=listed, now=now)
        place += not admitted
        mine = None if admitted else place
        found.append(Application(release.name, row.organisation_id, row.applied_at, admitted, mine, 0, row.note))
    return [Application(a.release, a.organisation_id, a.applied_at, a.admitted, a.place, place, a.note) for a in found]
