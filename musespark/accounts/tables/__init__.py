"""The tables of the platform, one file per subject, all on one `metadata`.

Every change here comes with a migration under `migrations/versions`; a test compares the two. Times are whole seconds
since 1970 in UTC, so that SQLite and PostgreSQL store, order and compare them alike. A new subject is a new file, and
one line here: what is not imported here the migrations' test does not see.
"""

from __future__ import annotations

from musespark.accounts.tables.audit import audit_events
from musespark.accounts.tables.base import metadata
from musespark.accounts.tables.identity import keys, organisations, projects, service_accounts
from musespark.accounts.tables.ledger import balances, credit_lots, holds, spending, transfers, usage_records
from musespark.accounts.tables.limits import limit_buckets, limit_leases, limits
from musespark.accounts.tables.people import (
    invitations,
    memberships,
    oidc_identities,
    oidc_sign_ins,
    people,
    sessions,
    sign_in_attempts,
)
from musespark.accounts.tables.prices import caps, plan_versions, price_versions, subscription_periods, subscriptions
from musespark.accounts.tables.releases import (
    early_access,
    release_aliases,
    release_events,
    release_invitations,
    releases,
)
from musespark.accounts.tables.usage import idempotency_keys, outbox, stripe_customers, usage_rollups

__all__ = [
    "audit_events",
    "balances",
    "caps",
    "credit_lots",
    "early_access",
    "holds",
    "idempotency_keys",
    "invitations",
    "keys",
    "limit_buckets",
    "limit_leases",
    "limits",
    "memberships",
    "metadata",
    "oidc_identities",
    "oidc_sign_ins",
    "organisations",
    "outbox",
    "people",
    "plan_versions",
    "price_versions",
    "projects",
    "release_aliases",
    "release_events",
    "release_invitations",
    "releases",
    "service_accounts",
    "sessions",
    "sign_in_attempts",
    "spending",
    "stripe_customers",
    "subscription_periods",
    "subscriptions",
    "transfers",
    "usage_records",
    "usage_rollups",
]
