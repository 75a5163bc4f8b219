"""What was used, added up by the hour and by the day; what is to be told to other systems; answers kept for a retry."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, String, Table, Text

from musespark.accounts.tables.base import metadata
from musespark.accounts.tables.prices import PRICE_UNITS

# Added to in the transaction that settles a request, so that it can't differ from the ledger.
usage_rollups = Table(
    "usage_rollups",
    metadata,
    Column("organisation_id", String(64), primary_key=True),
    Column("granularity", String(4), primary_key=True),  # hour or day, of UTC
    Column("start", BigInteger, primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("project_id", String(64), primary_key=True),
    Column("key_id", String(64), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    *(Column(unit, BigInteger, nullable=False) for unit in PRICE_UNITS),
    Column("amount_nano", BigInteger, nullable=False),
)

# Written in the same transaction, where an export is configured; a row that was delivered is deleted.
outbox = Table(
    "outbox",
    metadata,
    Column("id", String(200), primary_key=True),  # of the event: <hold>/<part>
    Column("organisation_id", String(64), nullable=False),
    Column("data", Text, nullable=False),  # JSON
    Column("created_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", BigInteger, nullable=False),  # when to try (again); later while somebody tries
    Column("last_error", String(200)),
    Index("ix_outbox_due_at", "due_at"),
)

stripe_customers = Table(
    "stripe_customers",
    metadata,
    Column("organisation_id", String(64), primary_key=True),
    Column("customer_id", String(100), nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("project_id", String(64), primary_key=True),
    Column("key_digest", LargeBinary(32), primary_key=True),
    Column("request_digest", LargeBinary(32), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("alive_until", BigInteger),  # while it is being answered; null: `body` is the answer
    Column("status", Integer),
    Column("media_type", String(100)),
    Column("body", LargeBinary),  # null with a status: too large to be kept
    Column("size_bytes", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index("ix_idempotency_keys_expires_at", "expires_at"),
)
