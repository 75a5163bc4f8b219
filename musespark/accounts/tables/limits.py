"""Limits: what is allowed (`limits`), what was used of it (`limit_buckets`), and what runs now (`limit_leases`).

The last two are used only where several processes share the database; limits_shared.py says what their numbers mean.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, String, Table

from musespark.accounts.tables.base import metadata

limits = Table(
    "limits",
    metadata,
    Column("subject_id", String(64), primary_key=True),  # of an organisation, a project or a key
    Column("requests_per_minute", BigInteger),  # null: no limit
    Column("requests_per_day", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("tokens_per_day", BigInteger),
    Column("images_per_minute", BigInteger),
    Column("images_per_day", BigInteger),
    Column("concurrent_requests", BigInteger),
    Column("context_tokens", BigInteger),
    Column("updated_at", BigInteger, nullable=False),
)

limit_buckets = Table(
    "limit_buckets",
    metadata,
    Column("name", String(128), primary_key=True),  # subject:unit:period
    Column("level", BigInteger, nullable=False),  # units · milliseconds of the period
    Column("updated_ms", BigInteger, nullable=False),
)

limit_leases = Table(
    "limit_leases",
    metadata,
    Column("request_id", String(64), primary_key=True),
    Column("subject_id", String(64), primary_key=True, index=True),
    Column("expires_ms", BigInteger, nullable=False),
)
