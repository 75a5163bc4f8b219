"""Service accounts: owners of keys that are not people, so that a program's keys do not end when somebody leaves."""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from musespark.accounts import audit, organisations, tables
from musespark.accounts.actor import Actor
from musespark.accounts.database import Database
from musespark.accounts.names import checked_name
from musespark.accounts.secret import new_id
from musespark.errors import NotFound


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """Times are UTC seconds since 1970. Once it is disabled, none of its keys works."""

    id: str
    project_id: str
    name: str
    created_at: int
    disabled_at: int | None


def create_service_account(
    database: Database, actor: Actor, organisation_id: str, project_id: str, name: str
) -> ServiceAccount:
    """Raises InvalidRequest for an unusable name, NotFound for a project of another organisation."""
    name = checked_name(name, "a service account's")
    with database.write() as connection:
        organisations.project_of(connection, organisation_id, project_id)
        account = ServiceAccount(new_id("svc"), project_id, name, int(time.time()), None)
        connection.execute(
            sa.insert(tables.service_accounts).values(
                id=account.id, project_id=project_id, name=name, created_at=account.created_at
            )
        )
        audit.record(
            connection,
            actor,
            "service_account.create",
            account.id,
            organisation_id=organisation_id,
            name=name,
            project_id=project_id,
        )
    return account


def list_service_accounts(database: Database, organisation_id: str) -> list[ServiceAccount]:
    """Oldest first, the disabled ones too."""
    columns = tables.service_accounts.c
    query = (
        sa.select(tables.service_accounts)
        .join(tables.projects, columns.project_id == tables.projects.c.id)
        .where(tables.projects.c.organisation_id == organisation_id)
        .order_by(columns.created_at, columns.id)
    )
    with database.read() as connection:
        return [ServiceAccount(**row._mapping) for row in connection.execute(query)]


def disable_service_account(database: Database, actor: Actor, organisation_id: str, account_id: str) -> ServiceAccount:
    """End all of its keys; there is no way back. Raises NotFound."""
    with database.write() as connection:
        account = service_account_of(connection, organisation_id, account_id)
        if account.disabled_at is None:
            table = tables.service_accounts
            connection.execute(sa.update(table).where(table.c.id == account_id).values(disabled_at=int(time.time())))
            audit.record(connection, actor, "service_account.disable", account_id, organisation_id=organisation_id)
        return service_account_of(connection, organisation_id, account_id)


def service_account_of(connection: sa.Connection, organisation_id: str | None, account_id: str) -> ServiceAccount:
    """The account, if it is this organisation's; None is any. Raises NotFound."""
    query = (
        sa.select(tables.service_accounts)
        .join(tables.projects, tables.service_accounts.c.project_id == tables.projects.c.id)
        .where(tables.service_accounts.c.id == account_id)
    )
    if organisation_id is not None:
        query = query.where(tables.projects.c.organisation_id == organisation_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"there is no service account {account_id[:80]!r}")
    return ServiceAccount(**row._mapping)
