"""How a change to a release is made: in one transaction that holds the write lock, with a reason, and recorded twice.

Once in the release's own history, which its status page shows, and once in the audit log.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from musespark.accounts import audit, tables
from musespark.accounts.actor import Actor
from musespark.accounts.database import Database
from musespark.accounts.names import checked_text
from musespark.accounts.release_stages import EventKind, Release
from musespark.accounts.releases import from_row
from musespark.errors import InvalidRequest, NotFound

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RecordedChanges:
    """What all changes share: who makes them, and when. `now` is the wall clock in UTC seconds; tests turn it."""

    def __init__(self, database: Database, actor: Actor, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._actor = actor
        self._now = now

    def _save(self, connection: sa.Connection, release: Release) -> None:
        table = tables.releases
        connection.execute(sa.update(table).where(table.c.name == release.name).values(**release_values(release)))

    def _note(
        self,
        connection: sa.Connection,
        name: str,
        kind: EventKind,
        before: str | None,
        after: str | None,
        why: str,
        **details: Any,
    ) -> None:
        connection.execute(
            sa.insert(tables.release_events).values(
                release_name=name,
                at=int(self._now()),
                kind=kind,
                value_before=before,
                value_after=after,
                why=why,
                actor_kind=self._actor.kind,
                actor_id=self._actor.id,
                actor_name=self._actor.name,
            )
        )
        shown = {"before": before, "after": after, "why": why}
        audit.record(connection, self._actor, f"release.{kind}", name, **shown, **details)


def find(connection: sa.Connection, name: str) -> Release:
    row = connection.execute(sa.select(tables.releases).where(tables.releases.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"there is no release {name[:100]!r}; `musespark release list` shows them")
    return from_row(row)


def checked_model(name: str, param: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{param} is {name[:100]!r}; a name has 1 to 100 of A-Z a-z 0-9 . _ - and begins with a letter or a digit",
            param=param,
        )
    return name


def checked_reason(why: str) -> str:
    return checked_text(why, "the reason", "why")


def release_values(release: Release) -> dict[str, Any]:
    names = ("name", "model", "stage", "ramp_basis_points", "launch_at", "shutdown_at", "replacement")
    values = {name: getattr(release, name) for name in (*names, "created_at", "stage_since")}
    policy = release.data_policy
    return values | {"training": policy.training, "retention_days": policy.retention_days, "region": policy.region}
