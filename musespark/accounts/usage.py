"""What was used, by hour or day and model, project or key: counted when it is billed, read without touching requests.

`count` runs inside the transaction that settles a request. A report reads rollups only, whose number depends on keys
and hours and not on requests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from musespark.accounts.database import Database
from musespark.accounts.settlement import SettledRecord
from musespark.accounts.tables.prices import PRICE_UNITS
from musespark.accounts.transactions import Transaction
from musespark.errors import InvalidRequest

HOUR_S, DAY_S = 3600, 86_400
SECONDS = {"hour": HOUR_S, "day": DAY_S}
MOST_BUCKETS = 1000  # of time, in one report: 41 days of hours
MOST_ROWS = 10_000
NUMBERS = ("requests", *PRICE_UNITS, "amount_nano")

Granularity = Literal["hour", "day"]
Grouping = Literal["model", "project_id", "key_id"]

_COUNT = (
    f"INSERT INTO usage_rollups (organisation_id, granularity, start, model, project_id, key_id, {', '.join(NUMBERS)}) "
    f"VALUES ({', '.join(['?'] * (6 + len(NUMBERS)))}) "
    "ON CONFLICT (organisation_id, granularity, start, model, project_id, key_id) DO UPDATE SET "
    + ", ".join(f"{name} = usage_rollups.{name} + excluded.{name}" for name in NUMBERS)
)


def count(tx: Transaction, record: SettledRecord) -> None:
    """Add a usage record to its hour and its day. A late second part of a request is no second request."""
    numbers = (int(record.part == 0), *record.lines.counts, record.amount_nano)
    for granularity, seconds in SECONDS.items():
        start = record.settled_at // seconds * seconds
        key = (record.organisation_id, granularity, start, record.model, record.project_id, record.key_id)
        tx.execute(_COUNT, (*key, *numbers))


@dataclass(frozen=True, slots=True)
class Query:
    """Which usage to report: of [start, end) in UTC seconds, from a whole bucket on. A filter that is None is none.

    Raises InvalidRequest naming the parameter.
    """

    organisation_id: str
    granularity: Granularity
    start: int
    end: int
    group_by: tuple[Grouping, ...] = ()
    model: str | None = None
    project_id: str | None = None
    key_id: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 2**40:
            raise InvalidRequest("`start` must be before `end`, both in UTC seconds since 1970", param="start")
        buckets = (self.end - self.start) // SECONDS[self.granularity]
        if buckets > MOST_BUCKETS:
            message = f"these are {buckets:,} {self.granularity}s; a report has at most {MOST_BUCKETS:,}: ask for less"
            raise InvalidRequest(message, param="start")


def report(database: Database, query: Query) -> list[dict[str, Any]]:
    """Rows in the order of time: `start` of the bucket, the groups, and the sums. Raises InvalidRequest."""
    filters = {name: getattr(query, name) for name in ("model", "project_id", "key_id")}
    given = {name: value for name, value in filters.items() if value is not None}
    groups = ("start", *query.group_by)
    # PostgreSQL's sums of big integers are decimals, which take Python long to read.
    sums = ", ".join(f"CAST(SUM({name}) AS BIGINT)" for name in NUMBERS)
    sql = (
        f"SELECT {', '.join(groups)}, {sums} FROM usage_rollups "
        "WHERE organisation_id = :organisation AND granularity = :granularity AND start >= :start AND start < :end"
        + "".join(f" AND {name} = :{name}" for name in given)
        + f" GROUP BY {', '.join(groups)} ORDER BY {', '.join(groups)} LIMIT {MOST_ROWS + 1}"
    )
    seconds = SECONDS[query.granularity]
    bounds = {"start": query.start // seconds * seconds, "end": query.end}
    of = {"organisation": query.organisation_id, "granularity": query.granularity}
    with database.read() as connection:  # not `transact`, which would keep the ledger from writing meanwhile
        rows = connection.execute(sa.text(sql), of | bounds | given).all()
    if len(rows) > MOST_ROWS:
        message = f"the report has more than {MOST_ROWS:,} rows; ask for less time, or group by less"
        raise InvalidRequest(message, param="group_by")
    names = (*groups, *NUMBERS)
    return [dict(zip(names, row, strict=True)) for row in rows]


def default_range(granularity: Granularity, now: float | None = None) -> tuple[int, int]:
    """The last 24 hours, or 30 days, the running one included."""
    seconds = SECONDS[granularity]
    end = (int(time.time() if now is None else now) // seconds + 1) * seconds
    return end - (24 if granularity == "hour" else 30) * seconds, end


def groupings(names: Sequence[str]) -> tuple[Grouping, ...]:
    """`model`, `project` and `key`, as a client writes them. Raises InvalidRequest."""
    known: dict[str, Grouping] = {"model": "model", "project": "project_id", "key": "key_id"}
    for name in names:
        if name not in known:
            raise InvalidRequest(f"`group_by` is {name[:40]!r}; it may be model, project and key", param="group_by")
    return tuple(dict.fromkeys(known[name] for name in names))
