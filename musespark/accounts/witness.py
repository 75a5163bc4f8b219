"""A database that notes in the audit log what is done through it, in the same transaction.

Functions about prices, plans, credit, caps and limits take a Database and open their own transaction. Given a `Witness`
instead they do the same, and there is no act without its event, nor an event without its act.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa

from musespark.accounts import audit, tables
from musespark.accounts.actor import Actor
from musespark.accounts.database import Database
from musespark.accounts.transactions import Transaction
from musespark.errors import NotFound

T = TypeVar("T")


class Witness(Database):
    """`database` for one act by one actor; `details` are what the event says of it. Not to be closed."""

    def __init__(
        self,
        database: Database,
        actor: Actor,
        action: str,
        target: str,
        *,
        organisation_id: str | None = None,
        **details: Any,
    ) -> None:
        self._witnessed = database
        self._actor = actor
        self._action = action
        self._target = target
        self._organisation_id = organisation_id
        self._details = details
        self.dialect = database.dialect
        self.name = database.name

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self._witnessed.read() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        with self._witnessed.write() as connection:
            yield connection
            audit.record(
                connection,
                self._actor,
                self._action,
                self._target,
                organisation_id=self._organisation_id,
                **self._details,
            )

    def transact(self, work: Callable[[Transaction], T], *, durable: bool = False) -> T:
        """As Database's. A `work` that returns False has found that everything was done before: no event then."""

        def witnessed(tx: Transaction) -> T:
            result = work(tx)
            if result is not False:
                self._record(tx)
            return result

        return self._witnessed.transact(witnessed, durable=durable)

    def _record(self, tx: Transaction) -> None:
        actor = self._actor
        values = {
            "at": int(time.time()),
            "actor_kind": actor.kind,
            "actor_id": actor.id,
            "actor_name": actor.name,
            "source": actor.source,
            "request_id": actor.request_id,
            "organisation_id": self._organisation_id,
            "action": self._action,
            "target": self._target[:200],
            "details": json.dumps(self._details, sort_keys=True),
        }
        marks = ", ".join("?" for _ in values)
        tx.execute(f"INSERT INTO audit_events ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))


def owner_of(database: Database, subject_id: str) -> str:
    """The organisation that an organisation, project or key belongs to. Raises NotFound."""
    keys, projects, owners = tables.keys.c, tables.projects.c, tables.organisations.c
    queries = {
        "org": sa.select(owners.id).where(owners.id == subject_id),
        "proj": sa.select(projects.organisation_id).where(projects.id == subject_id),
        "key": sa.select(projects.organisation_id)
        .join(tables.keys, keys.project_id == projects.id)
        .where(keys.id == subject_id),
    }
    query = queries.get(subject_id.partition("_")[0])
    with database.read() as connection:
        found = None if query is None else connection.scalar(query)
    if found is None:
        raise NotFound(f"there is no organisation, project or key {subject_id[:80]!r}")
    return str(found)
