"""The audit log: every administrative act, in the transaction that did it, so that there is none without its entry.

Events are never changed: the database refuses it (append_only.py). No secret is ever among the details.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from musespark.accounts import tables
from musespark.accounts.actor import Actor
from musespark.accounts.database import Database
from musespark.errors import InvalidRequest

MOST_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """`at` in UTC seconds since 1970; `id` grows with time. `organisation_id` None: it concerns the whole server."""

    id: int
    at: int
    actor_kind: str
    actor_id: str
    actor_name: str
    source: str
    request_id: str | None
    organisation_id: str | None
    action: str
    target: str
    details: dict[str, Any]


def record(
    connection: sa.Connection,
    actor: Actor,
    action: str,
    target: str,
    *,
    organisation_id: str | None = None,
    **details: Any,
) -> None:
    """Note that `actor` did `action` to `target`, inside the transaction that does it."""
    connection.execute(
        sa.insert(tables.audit_events).values(
            at=int(time.time()),
            actor_kind=actor.kind,
            actor_id=actor.id,
            actor_name=actor.name,
            source=actor.source,
            request_id=actor.request_id,
            organisation_id=organisation_id,
            action=action,
            target=target[:200],
            details=json.dumps(details, sort_keys=True),
        )
    )


def list_events(
    database: Database,
    *,
    organisation_id: str | None = None,
    action: str | None = None,
    before_id: int | None = None,
    limit: int = 100,
) -> list[Event]:
    """The newest events first; `before_id` of the last one goes on from there. None is no filter.

    Raises InvalidRequest for a `limit` outside 1 to 1,000.
    """
    if not 1 <= limit <= MOST_AT_ONCE:
        raise InvalidRequest(f"limit is {limit}; it must be from 1 to {MOST_AT_ONCE:,}", param="limit")
    events = tables.audit_events
    query = sa.select(events).order_by(events.c.id.desc()).limit(limit)
    if organisation_id is not None:
        query = query.where(events.c.organisation_id == organisation_id)
    if action is not None:
        query = query.where(events.c.action == action)
    if before_id is not None:
        query = query.where(events.c.id < before_id)
    with database.read() as connection:
        rows = connection.execute(query).all()
    return [Event(**{**row._mapping, "details": json.loads(row.details)}) for row in rows]
