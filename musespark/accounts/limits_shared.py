"""Limits counted in the platform's database, for several server processes that are to behave as one.

Each call is one transaction that locks the rows of its buckets, computes with the functions of limits.py, and writes
them back: the same numbers as limits_memory.py gives, whichever process asks. Rows are locked in the order of their
names, so two calls never wait for each other in a circle. The clock is the database server's, since those of several
machines differ; SQLite has one machine and its clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from musespark.accounts.database import Database
from musespark.accounts.limits import EMPTY, Bucket, Cap, Rate, Standing, Unit, add, check, check_cap, standing
from musespark.accounts.tables.limits import limit_buckets, limit_leases
from musespark.errors import MuseSparkError

LEASE_MS = 60_000  # a request whose process died counts as running for so long; `renew` comes three times in it


class SharedLimitStore:
    """`now_ms` None: the database's clock. A test turns one of its own."""

    def __init__(self, database: Database, now_ms: Callable[[], int] | None = None) -> None:
        self._database = database
        self._now_ms = now_ms

    def take(self, rates: Sequence[Rate], costs: Mapping[Unit, int]) -> list[Standing]:
        if not rates:
            return []
        with self._database.write() as connection:
            now_ms = self._now(connection)
            buckets = self._lock(connection, rates, now_ms)
            try:
                check(rates, buckets, costs, now_ms)
                return self._write(connection, rates, buckets, costs, now_ms)
            except MuseSparkError as error:
                refusal = error  # raised below: that a clock went back is to be kept
        raise refusal

    def correct(self, rates: Sequence[Rate], costs: Mapping[Unit, int]) -> None:
        rates = [rate for rate in rates if costs.get(rate.unit, 0)]
        if not rates:
            return
        with self._database.write() as connection:
            now_ms = self._now(connection)
            self._write(connection, rates, self._lock(connection, rates, now_ms), costs, now_ms)

    def enter(self, caps: Sequence[Cap], request_id: str) -> None:
        leases = limit_leases.c
        if not caps:
            return
        with self._database.write() as connection:
            now_ms = self._now(connection)
            # The bucket's row is the lock of its subject: without it two processes would count the same free place.
            self._lock_rows(connection, [f"{cap.subject_id}:running" for cap in caps])
            for cap in caps:
                alive = (leases.subject_id == cap.subject_id) & (leases.expires_ms > now_ms)
                count = sa.select(sa.func.count()).select_from(limit_leases).where(alive)
                check_cap(cap, connection.scalar(count) or 0)
            subjects = [cap.subject_id for cap in caps]
            stale = leases.subject_id.in_(subjects) & (leases.expires_ms <= now_ms)
            connection.execute(sa.delete(limit_leases).where(stale))
            rows = [
                {"request_id": request_id, "subject_id": subject_id, "expires_ms": now_ms + LEASE_MS}
                for subject_id in subjects
            ]
            connection.execute(sa.insert(limit_leases), rows)

    def renew(self, request_ids: Sequence[str]) -> None:
        if not request_ids:
            return
        with self._database.write() as connection:
            until = self._now(connection) + LEASE_MS
            mine = limit_leases.c.request_id.in_(request_ids)
            connection.execute(sa.update(limit_leases).where(mine).values(expires_ms=until))

    def leave(self, request_id: str) -> None:
        with self._database.write() as connection:
            connection.execute(sa.delete(limit_leases).where(limit_leases.c.request_id == request_id))

    def _lock(self, connection: sa.Connection, rates: Sequence[Rate], now_ms: int) -> dict[str, Bucket]:
        rows = self._lock_rows(connection, [rate.name for rate in rates])
        ahead = [name for name, bucket in rows.items() if bucket.updated_ms > now_ms]
        for name in ahead:  # the clock was put back: without this nothing would drain until it is there again
            rows[name] = Bucket(rows[name].level, now_ms)
            this = limit_buckets.c.name == name
            connection.execute(sa.update(limit_buckets).where(this).values(updated_ms=now_ms))
        return rows

    def _lock_rows(self, connection: sa.Connection, names: Sequence[str]) -> dict[str, Bucket]:
        """The rows by name, locked to the end of the transaction; those that were missing are made."""
        buckets = limit_buckets.c
        query = sa.select(limit_buckets).where(buckets.name.in_(names)).order_by(buckets.name).with_for_update()
        rows = connection.execute(query).all()
        if len(rows) < len(set(names)):
            empty = [
                {"name": name, "level": EMPTY.level, "updated_ms": EMPTY.updated_ms} for name in sorted(set(names))
            ]
            connection.execute(_insert_or_skip(connection, limit_buckets), empty)
            rows = connection.execute(query).all()
        return {row.name: Bucket(row.level, row.updated_ms) for row in rows}

    def _write(
        self,
        connection: sa.Connection,
        rates: Sequence[Rate],
        buckets: Mapping[str, Bucket],
        costs: Mapping[Unit, int],
        now_ms: int,
    ) -> list[Standing]:
        result, changed = [], []
        for rate in rates:
            bucket, amount = buckets[rate.name], costs.get(rate.unit, 0)
            if amount:
                bucket = add(rate, bucket, amount, now_ms)
                changed.append({"bucket": rate.name, "level": bucket.level, "updated_ms": bucket.updated_ms})
            result.append(standing(rate, bucket, now_ms))
        if changed:
            this = limit_buckets.c.name == sa.bindparam("bucket")
            values: dict[str, sa.BindParameter[int]] = {name: sa.bindparam(name) for name in ("level", "updated_ms")}
            connection.execute(sa.update(limit_buckets).where(this).values(values), changed)
        return result

    def _now(self, connection: sa.Connection) -> int:
        if self._now_ms is not None:
            return self._now_ms()
        if connection.dialect.name == "sqlite":
            return time.time_ns() // 1_000_000
        clock = sa.func.floor(sa.func.extract("epoch", sa.func.clock_timestamp()) * 1000)
        return int(connection.scalar(sa.select(sa.cast(clock, sa.BigInteger))) or 0)


def _insert_or_skip(connection: sa.Connection, table: sa.Table) -> sa.Insert:
    """INSERT … ON CONFLICT DO NOTHING, which both databases have and SQLAlchemy keeps per database."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()
