"""Who there is: organisations own projects, projects own keys and service accounts."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, LargeBinary, String, Table, Text, false

from musespark.accounts.tables.base import metadata

organisations = Table(
    "organisations",
    metadata,
    Column("id", String(64), primary_key=True),  # org_…
    Column("name", String(200), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("internal", Boolean, nullable=False, server_default=false()),  # of those who run the server
    Column("suspended_at", BigInteger),  # none of its keys work
)

projects = Table(
    "projects",
    metadata,
    Column("id", String(64), primary_key=True),  # proj_…
    Column("organisation_id", ForeignKey("organisations.id"), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("archived_at", BigInteger),  # none of its keys work
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
    Column("access", String(16), nullable=False, server_default="standard"),  # scopes.Access
    Column("models", Text),  # JSON list of release names; NULL: all
    Column("routes", Text),  # JSON list of groups of permissions; NULL: all that `access` has
    Column("replaces", String(64)),  # the key that this one was rotated from
    # No reference: SQLite can't drop a column that has one, so going down would copy a table that others refer to.
    Column("service_account_id", String(64)),
)

service_accounts = Table(
    "service_accounts",
    metadata,
    Column("id", String(64), primary_key=True),  # svc_…
    Column("project_id", ForeignKey("projects.id"), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("disabled_at", BigInteger),  # none of its keys work
)
