"""Usage by the hour and day, the outbox of exports, and answers kept under an Idempotency-Key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

UNITS = ("text_in", "image_in", "cached_in", "output", "reasoning")


def upgrade() -> None:
    keys = ("organisation_id", "granularity", "start", "model", "project_id", "key_id")
    op.create_table(
        "usage_rollups",
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("granularity", sa.String(4), nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("requests", *UNITS, "amount_nano")),
        sa.PrimaryKeyConstraint(*keys, name="pk_usage_rollups"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.String(200), nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("last_error", sa.String(200)),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    op.create_index("ix_outbox_due_at", "outbox", ["due_at"])
    op.create_table(
        "stripe_customers",
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("customer_id", sa.String(100), nullable=False),
        sa.PrimaryKeyConstraint("organisation_id", name="pk_stripe_customers"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("key_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("request_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("alive_until", sa.BigInteger),
        sa.Column("status", sa.Integer),
        sa.Column("media_type", sa.String(100)),
        sa.Column("body", sa.LargeBinary),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project_id", "key_digest", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_expires_at", "idempotency_keys", ["expires_at"])


def downgrade() -> None:
    for table in ("idempotency_keys", "stripe_customers", "outbox", "usage_rollups"):
        op.drop_table(table)
