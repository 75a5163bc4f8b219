"""The tables of the platform: organisations own projects, projects own keys.

Every change here comes with a migration under `migrations/versions`; a test compares the two. Times are whole seconds
since 1970 in UTC, so that SQLite and PostgreSQL store, order and compare them alike.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, LargeBinary, MetaData, String, Table

# Constraints need names: SQLite can only alter a table by copying it, and Alembic finds what to copy by name.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

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
