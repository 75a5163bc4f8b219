"""Who there is: organisations own projects, projects own keys."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, LargeBinary, String, Table

from musespark.accounts.tables.base import metadata

organisations = Table(
    "organisations",
    metadata,
    Column("id", String(64), primary_key=True),  # org_…
    Column("name", String(200), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("id", String(64), primary_key=True),  # proj_…
    Column("organisation_id", ForeignKey("organisations.id"), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(64), primary_key=True),  # key_…, what a person names when revoking
    Column("project_id", ForeignKey("projects.id"), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("prefix", String(32), nullable=False),  # the first characters of the secret, for display
    Column("digest", LargeBinary(32), nullable=False, unique=True),  # HMAC-SHA-256 of the secret under the pepper
    Column("pepper_id", String(16), nullable=False),  # which pepper made the digest
    Column("created_at", BigInteger, nullable=False),
    Column("last_used_at", BigInteger),  # coarse: see verify.LAST_USED_RESOLUTION_S
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
)
