"""Organisations and their projects: making, listing, renaming, and stopping them.

Nothing is ever deleted, since the ledger and the audit log refer to it: an organisation is suspended, a project
archived, and none of their keys works from then on. What is looked up with the wrong organisation is not found.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from musespark.accounts import audit, tables
from musespark.accounts.actor import Actor
from musespark.accounts.database import Database
from musespark.accounts.names import checked_name
from musespark.accounts.secret import new_id
from musespark.errors import NotFound

# An organisation's first project is made with it, so of those of the same second it is the one called so.
OLDEST_PROJECT = (tables.projects.c.created_at, tables.projects.c.name != "default", tables.projects.c.id)


@dataclass(frozen=True, slots=True)
class Organisation:
    """`internal`: of those who run the server, who see models of stage `internal`. Times are UTC seconds since 1970."""

    id: str
    name: str
    internal: bool
    created_at: int
    suspended_at: int | None


@dataclass(frozen=True, slots=True)
class Project:
    id: str
    organisation_id: str
    name: str
    created_at: int
    archived_at: int | None


def create_organisation(database: Database, actor: Actor, name: str, *, internal: bool = False) -> Organisation:
    """A new organisation with a project "default". Raises InvalidRequest for an unusable name."""
    name = checked_name(name, "an organisation's")
    with database.write() as connection:
        organisation = insert_organisation(connection, name, internal=internal)
        audit.record(
            connection,
            actor,
            "organisation.create",
            organisation.id,
            organisation_id=organisation.id,
            name=name,
            internal=internal,
        )
        insert_project(connection, organisation.id, "default")
    return organisation


def list_organisations(database: Database) -> list[Organisation]:
    """All of them, oldest first."""
    columns = tables.organisations.c
    with database.read() as connection:
        rows = connection.execute(sa.select(tables.organisations).order_by(columns.created_at, columns.id))
        return [Organisation(**row._mapping) for row in rows]


def get_organisation(database: Database, organisation_id: str) -> Organisation:
    with database.read() as connection:
        return find_organisation(connection, organisation_id)


def update_organisation(
    database: Database, actor: Actor, organisation_id: str, *, name: str | None = None, suspended: bool | None = None
) -> Organisation:
    """Rename, suspend or resume; None leaves as it is. Raises NotFound."""
    changes: dict[str, str | int | None] = {}
    if name is not None:
        changes["name"] = checked_name(name, "an organisation's")
    with database.write() as connection:
        before = find_organisation(connection, organisation_id)
        if suspended is not None and suspended != (before.suspended_at is not None):
            changes["suspended_at"] = int(time.time()) if suspended else None
        if changes:
            table = tables.organisations
            connection.execute(sa.update(table).where(table.c.id == organisation_id).values(**changes))
            audit.record(
                connection, actor, "organisation.update", organisation_id, organisation_id=organisation_id, **changes
            )
        return find_organisation(connection, organisation_id)


def create_project(database: Database, actor: Actor, organisation_id: str, name: str) -> Project:
    name = checked_name(name, "a project's")
    with database.write() as connection:
        find_organisation(connection, organisation_id)
        project = insert_project(connection, organisation_id, name)
        audit.record(connection, actor, "project.create", project.id, organisation_id=organisation_id, name=name)
    return project


def list_projects(database: Database, organisation_id: str | None = None) -> list[Project]:
    """Those of one organisation or of all, oldest first."""
    columns = tables.projects.c
    query = sa.select(tables.projects).order_by(*OLDEST_PROJECT)
    if organisation_id is not None:
        query = query.where(columns.organisation_id == organisation_id)
    with database.read() as connection:
        return [Project(**row._mapping) for row in connection.execute(query)]


def update_project(
    database: Database,
    actor: Actor,
    organisation_id: str,
    project_id: str,
    *,
    name: str | None = None,
    archived: bool | None = None,
) -> Project:
    """Rename, archive or take back from the archive; None leaves as it is. Raises NotFound."""
    changes: dict[str, str | int | None] = {}
    if name is not None:
        changes["name"] = checked_name(name, "a project's")
    with database.write() as connection:
        before = project_of(connection, organisation_id, project_id)
        if archived is not None and archived != (before.archived_at is not None):
            changes["archived_at"] = int(time.time()) if archived else None
        if changes:
            connection.execute(sa.update(tables.projects).where(tables.projects.c.id == project_id).values(**changes))
            audit.record(connection, actor, "project.update", project_id, organisation_id=organisation_id, **changes)
        return project_of(connection, organisation_id, project_id)


def project_of(connection: sa.Connection, organisation_id: str, project_id: str) -> Project:
    """The project if it is this organisation's. Raises NotFound, also for one of another: which ids exist is secret."""
    columns = tables.projects.c
    query = sa.select(tables.projects).where(columns.id == project_id, columns.organisation_id == organisation_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"there is no project {project_id[:80]!r} in {organisation_id[:80]!r}")
    return Project(**row._mapping)


def project_by_id(connection: sa.Connection, project_id: str) -> Project:
    """Any organisation's project, for those who may see them all. Raises NotFound."""
    row = connection.execute(sa.select(tables.projects).where(tables.projects.c.id == project_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no project {project_id[:80]!r}; `musespark project list` shows the ids")
    return Project(**row._mapping)


def is_internal(connection: sa.Connection, organisation_id: str) -> bool:
    return find_organisation(connection, organisation_id).internal


def default_project(connection: sa.Connection, organisation_id: str | None = None) -> Project:
    """The oldest project of the organisation, by default of the operator's own; the first call makes that one."""
    organisations, projects = tables.organisations.c, tables.projects.c
    if organisation_id is None:
        query = sa.select(organisations.id).where(organisations.internal.is_(True))
        query = query.order_by(organisations.created_at, organisations.id).limit(1)
        organisation_id = connection.scalar(query)
        if organisation_id is None:
            organisation_id = insert_organisation(connection, "default", internal=True).id
    else:
        find_organisation(connection, organisation_id)
    query_project = (
        sa.select(tables.projects).where(projects.organisation_id == organisation_id).order_by(*OLDEST_PROJECT).limit(1)
    )
    row = connection.execute(query_project).one_or_none()
    return Project(**row._mapping) if row is not None else insert_project(connection, organisation_id, "default")


def insert_organisation(connection: sa.Connection, name: str, *, internal: bool) -> Organisation:
    organisation = Organisation(new_id("org"), name, internal, int(time.time()), None)
    connection.execute(
        sa.insert(tables.organisations).values(
            id=organisation.id, name=name, internal=internal, created_at=organisation.created_at
        )
    )
    return organisation


def insert_project(connection: sa.Connection, organisation_id: str, name: str) -> Project:
    project = Project(new_id("proj"), organisation_id, name, int(time.time()), None)
    connection.execute(
        sa.insert(tables.projects).values(
            id=project.id, organisation_id=organisation_id, name=name, created_at=project.created_at
        )
    )
    return project


def find_organisation(connection: sa.Connection, organisation_id: str) -> Organisation:
    query = sa.select(tables.organisations).where(tables.organisations.c.id == organisation_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"there is no organisation {organisation_id[:80]!r}; `musespark org list` shows the ids")
    return Organisation(**row._mapping)
