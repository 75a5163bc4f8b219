"""What things cost and what was agreed: price versions, plan versions, subscriptions and their periods, caps."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, String, Table, Text, text

from musespark.accounts.tables.base import metadata

MAX_PRICE = 10**9  # nano-units per token: one dollar a token; times 10 million tokens it is far from a 64-bit overflow
MAX_AMOUNT = 10**15  # nano-units: a million dollars, the most in one fee, cap, credit or included amount

PRICE_UNITS = ("text_in", "image_in", "cached_in", "output", "reasoning")

# Append-only. A version is never changed: a new price is a new version that begins later.
price_versions = Table(
    "price_versions",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("currency", String(3), nullable=False),
    *(Column(unit, BigInteger, nullable=False) for unit in PRICE_UNITS),  # nano-units per token
    Column("request_fee", BigInteger, nullable=False),  # nano-units per request that produced anything
    Column("effective_from", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    *(CheckConstraint(f"{unit} BETWEEN 0 AND {MAX_PRICE}", name=unit) for unit in PRICE_UNITS),
    CheckConstraint(f"request_fee BETWEEN 0 AND {MAX_AMOUNT}", name="request_fee"),
    Index("uq_price_versions_start", "model", "currency", "effective_from", unique=True),
)

# Append-only. Organisations keep the version that they subscribed to until they are moved.
plan_versions = Table(
    "plan_versions",
    metadata,
    Column("plan_id", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("kind", String(16), nullable=False),  # standard | trial | partner
    Column("currency", String(3), nullable=False),
    Column("monthly_fee", BigInteger, nullable=False),
    Column("included", BigInteger, nullable=False),  # credit that each period begins with and that ends with it
    Column("overage", String(8), nullable=False),  # stop: nothing beyond credits; bill: owed up to overage_limit
    Column("overage_limit", BigInteger, nullable=False),
    Column("limits", Text, nullable=False),  # JSON, read by limits_config.py
    Column("outage", String(8), nullable=False),  # while the database is away: refuse | allow
    Column("outage_bound", BigInteger, nullable=False),  # allow: the most per process and organisation
    Column("trial_days", Integer),  # after these the organisation moves to next_plan
    Column("next_plan", String(64)),
    Column("created_at", BigInteger, nullable=False),
    *(
        CheckConstraint(f"{name} BETWEEN 0 AND {MAX_AMOUNT}", name=name)
        for name in ("monthly_fee", "included", "overage_limit", "outage_bound")
    ),
    CheckConstraint("kind IN ('standard', 'trial', 'partner')", name="kind"),
    CheckConstraint("overage IN ('stop', 'bill')", name="overage"),
    CheckConstraint("outage IN ('refuse', 'allow')", name="outage"),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("id", String(96), primary_key=True),  # <organisation>/sub<n>
    Column("organisation_id", ForeignKey("organisations.id"), nullable=False, index=True),
    Column("plan_id", String(64), nullable=False),
    Column("plan_version", Integer, nullable=False),
    Column("started_at", BigInteger, nullable=False),  # periods are whole months counted from here
    Column("trial_ends_at", BigInteger),
    Column("periods", Integer, nullable=False),  # how many have begun
    Column("period_ends_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Index(
        "uq_subscriptions_current",
        "organisation_id",
        unique=True,
        sqlite_where=text("ended_at IS NULL"),
        postgresql_where=text("ended_at IS NULL"),
    ),
)

# Append-only: what each period charged and granted. Invoices read this.
subscription_periods = Table(
    "subscription_periods",
    metadata,
    Column("subscription_id", ForeignKey("subscriptions.id"), primary_key=True),
    Column("number", Integer, primary_key=True),  # from 1
    Column("starts_at", BigInteger, nullable=False),
    Column("ends_at", BigInteger, nullable=False),
    Column("fee", BigInteger, nullable=False),
    Column("included", BigInteger, nullable=False),
    Column("overage", BigInteger, nullable=False),  # what the period before it owed beyond its credits
)

# Monthly caps in UTC months, of organisations, projects and keys: their ids are unique across the three.
caps = Table(
    "caps",
    metadata,
    Column("scope_id", String(64), primary_key=True),
    Column("monthly", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    CheckConstraint("monthly >= 0", name="monthly"),
)
