"""Releases: a public name for a model, its stage and dates, and who is let in before everybody is."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, String, Table, Text, UniqueConstraint

from musespark.accounts.tables.base import metadata

_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")

releases = Table(
    "releases",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("model", String(100), nullable=False, index=True),  # the provider's name for what is served
    Column("stage", String(16), nullable=False),  # release_stages.Stage
    Column("stage_since", BigInteger, nullable=False),
    Column("ramp_basis_points", Integer, nullable=False),  # hundredths of a percent of all organisations
    Column("launch_at", BigInteger),
    Column("shutdown_at", BigInteger),
    Column("replacement", String(100)),
    Column("training", Boolean, nullable=False),  # the data policy: whether requests may be trained on
    Column("retention_days", Integer, nullable=False),
    Column("region", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

release_events = Table(  # append-only, like audit_events
    "release_events",
    metadata,
    Column("id", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("release_name", ForeignKey("releases.name"), nullable=False, index=True),
    Column("at", BigInteger, nullable=False),
    Column("kind", String(32), nullable=False),  # release_stages.EventKind
    Column("value_before", String(200)),
    Column("value_after", String(200)),
    Column("why", Text, nullable=False),
    Column("actor_kind", String(16), nullable=False),
    Column("actor_id", String(64), nullable=False),
    Column("actor_name", String(320), nullable=False),
)

release_aliases = Table(
    "release_aliases",
    metadata,
    Column("alias", String(100), primary_key=True),
    Column("release_name", ForeignKey("releases.name"), nullable=False, index=True),
    Column("moved_at", BigInteger, nullable=False),
)

release_invitations = Table(
    "release_invitations",
    metadata,
    Column("release_name", ForeignKey("releases.name"), primary_key=True),
    Column("organisation_id", ForeignKey("organisations.id"), primary_key=True, index=True),
    Column("invited_at", BigInteger, nullable=False),
)

early_access = Table(
    "early_access",
    metadata,
    Column("id", _SEQUENCE, primary_key=True, autoincrement=True),  # the order of applying; seconds have ties
    Column("release_name", ForeignKey("releases.name"), nullable=False),
    Column("organisation_id", ForeignKey("organisations.id"), nullable=False, index=True),
    Column("note", Text, nullable=False),
    Column("applied_at", BigInteger, nullable=False),
    Column("admitted_at", BigInteger),
    UniqueConstraint("release_name", "organisation_id", name="uq_early_access_release_name"),
)
