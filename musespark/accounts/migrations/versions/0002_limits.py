"""Limits, and the buckets and leases that count what was used of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

RATES = [f"{unit}_per_{period}" for unit in ("requests", "tokens", "images") for period in ("minute", "day")]


def upgrade() -> None:
    op.create_table(
        "limits",
        sa.Column("subject_id", sa.String(64), nullable=False),
        *(sa.Column(name, sa.BigInteger) for name in (*RATES, "concurrent_requests", "context_tokens")),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("subject_id", name="pk_limits"),
    )
    op.create_table(
        "limit_buckets",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("level", sa.BigInteger, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_limit_buckets"),
    )
    op.create_table(
        "limit_leases",
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("subject_id", sa.String(64), nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("request_id", "subject_id", name="pk_limit_leases"),
    )
    op.create_index("ix_limit_leases_subject_id", "limit_leases", ["subject_id"])


def downgrade() -> None:
    op.drop_table("limit_leases")
    op.drop_table("limit_buckets")
    op.drop_table("limits")
