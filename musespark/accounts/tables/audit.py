"""What was done, by whom, when and from where. The database itself refuses to change or delete a row."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, String, Table, Text

from musespark.accounts.tables.base import metadata

audit_events = Table(
    "audit_events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False, index=True),
    Column("actor_kind", String(16), nullable=False),  # actor.ActorKind
    Column("actor_id", String(64), nullable=False),
    Column("actor_name", String(320), nullable=False),
    Column("source", String(200), nullable=False),  # an address, or the machine's user for the command line
    Column("request_id", String(64)),
    # No references: an event outlives what it tells of.
    Column("organisation_id", String(64), index=True),
    Column("action", String(64), nullable=False),  # such as key.create
    Column("target", String(200), nullable=False),
    Column("details", Text, nullable=False),  # JSON object
)
