"""Which limits hold for whom: set by the owner of an organisation, a project or a key, read on every request.

What was read is remembered for `CACHE_S`, like keys in verify.py, so a changed limit holds everywhere within that time.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from musespark.accounts import tables
from musespark.accounts.database import Database
from musespark.accounts.limits import NO_LIMITS, Cap, Limits, Rate, SubjectKind
from musespark.accounts.tables.limits import limits
from musespark.accounts.verify import AWAY
from musespark.errors import NotFound

CACHE_S = 0.5
CACHE_ENTRIES = 4096

_COLUMNS = [column for column in limits.c if column.name not in ("subject_id", "updated_at")]


@dataclass(frozen=True, slots=True)
class AllLimits:
    """Everything that one request has to keep to, of its organisation, its project and its key."""

    rates: tuple[Rate, ...]
    caps: tuple[Cap, ...]
    context_tokens: int | None  # the least of those given, and whose it is
    context_owner: str | None


def combine(subjects: Sequence[tuple[SubjectKind, str, Limits]]) -> AllLimits:
    """The limits of several subjects together: each holds."""
    rates: list[Rate] = []
    caps = []
    context: tuple[int, str] | None = None
    for kind, subject_id, own in subjects:
        rates += own.rates(kind, subject_id)
        if own.concurrent_requests is not None:
            caps.append(Cap(kind, subject_id, own.concurrent_requests))
        if own.context_tokens is not None and (context is None or own.context_tokens < context[0]):
            context = own.context_tokens, f"the {kind} {subject_id}"
    return AllLimits(tuple(rates), tuple(caps), *(context or (None, None)))


def set_limits(database: Database, subject_id: str, new: Limits) -> None:
    """Replace all limits of an organisation, a project or a key. Raises NotFound for an id that is none of these."""
    kinds = {"org": tables.organisations, "proj": tables.projects, "key": tables.keys}
    table = kinds.get(subject_id.partition("_")[0])
    with database.write() as connection:
        if table is None or not connection.scalar(sa.select(sa.exists().where(table.c.id == subject_id))):
            raise NotFound(f"there is no organisation, project or key {subject_id[:80]!r}")
        connection.execute(sa.delete(limits).where(limits.c.subject_id == subject_id))
        if new != NO_LIMITS:
            row = {"subject_id": subject_id, "updated_at": int(time.time()), **asdict(new)}
            connection.execute(sa.insert(limits).values(row))


def read_limits(database: Database, subject_ids: Sequence[str]) -> dict[str, Limits]:
    """Those that were set, by subject."""
    with database.read() as connection:
        query = sa.select(limits.c.subject_id, *_COLUMNS).where(limits.c.subject_id.in_(subject_ids))
        return {
            row.subject_id: Limits(**{column.name: row._mapping[column] for column in _COLUMNS})
            for row in connection.execute(query)
        }


class LimitReader:
    """Thread-safe. `remembered` never blocks; `read` asks the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, ...], tuple[float, dict[str, Limits]]] = OrderedDict()

    def remembered(self, subject_ids: tuple[str, ...]) -> dict[str, Limits] | None:
        with self._lock:
            entry = self._known.get(subject_ids)
        return None if entry is None or time.monotonic() >= entry[0] else entry[1]

    def read(self, subject_ids: tuple[str, ...]) -> dict[str, Limits]:
        found = self.remembered(subject_ids)
        if found is None:
            fresh_until = time.monotonic() + CACHE_S  # from before the reading, not after
            try:
                found = read_limits(self._database, subject_ids)
            except AWAY:
                with self._lock:
                    return self._known.get(subject_ids, (0.0, {}))[1]  # old ones, while the database is away
            with self._lock:
                self._known[subject_ids] = fresh_until, found
                self._known.move_to_end(subject_ids)
                while len(self._known) > CACHE_ENTRIES:
                    self._known.popitem(last=False)
        return found
