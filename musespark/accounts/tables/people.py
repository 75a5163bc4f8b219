"""People: who they are, what they may do in which organisation, and how they sign in."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, LargeBinary, String, Table, Text, false

from musespark.accounts.tables.base import metadata

people = Table(
    "people",
    metadata,
    Column("id", String(64), primary_key=True),  # person_…
    Column("email", String(320), nullable=False, unique=True),  # in lower case
    Column("name", String(200), nullable=False),
    Column("password_hash", Text),  # argon2id; NULL: signs in by OIDC only
    Column("operator", Boolean, nullable=False, server_default=false()),  # runs the server: all organisations
    Column("created_at", BigInteger, nullable=False),
    Column("disabled_at", BigInteger),
)

memberships = Table(
    "memberships",
    metadata,
    Column("person_id", ForeignKey("people.id"), primary_key=True),
    Column("organisation_id", ForeignKey("organisations.id"), primary_key=True, index=True),
    Column("role", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

invitations = Table(
    "invitations",
    metadata,
    Column("id", String(64), primary_key=True),  # invite_…
    Column("organisation_id", ForeignKey("organisations.id"), nullable=False, index=True),
    Column("email", String(320), nullable=False),
    Column("role", String(16), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),  # HMAC of the token in the invitation
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("accepted_at", BigInteger),
    Column("revoked_at", BigInteger),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(64), primary_key=True),  # sess_…
    Column("digest", LargeBinary(32), nullable=False, unique=True),  # HMAC of the cookie
    Column("person_id", ForeignKey("people.id"), nullable=False, index=True),
    Column("organisation_id", ForeignKey("organisations.id"), nullable=False),  # the one that the person works in
    Column("created_at", BigInteger, nullable=False),
    Column("last_seen_at", BigInteger, nullable=False),  # coarse
    Column("expires_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("source", String(200), nullable=False),
)

oidc_identities = Table(
    "oidc_identities",
    metadata,
    Column("issuer", String(300), primary_key=True),
    Column("subject", String(255), primary_key=True),
    Column("person_id", ForeignKey("people.id"), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
)

oidc_sign_ins = Table(  # on their way: sent to the provider and not yet back
    "oidc_sign_ins",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),  # HMAC of the state
    Column("nonce", String(64), nullable=False),
    Column("code_verifier", String(128), nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
)

sign_in_attempts = Table(
    "sign_in_attempts",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),  # HMAC of the email, or of the address
    Column("failures", Integer, nullable=False),
    Column("first_at", BigInteger, nullable=False, index=True),
    Column("locked_until", BigInteger),
)
