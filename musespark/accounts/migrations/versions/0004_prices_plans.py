"""Price versions, plan versions, subscriptions and caps."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from musespark.accounts import append_only

revision = "0004"
down_revision = "0003"

APPEND_ONLY = ("price_versions", "plan_versions", "subscription_periods")


def upgrade() -> None:
    _tables()
    for table in APPEND_ONLY:
        for statement in append_only.statements(table, op.get_bind().dialect.name):
            op.execute(statement)


def downgrade() -> None:
    for table in APPEND_ONLY:
        for statement in append_only.undo(table, op.get_bind().dialect.name):
            op.execute(statement)
    for table in ("caps", "subscription_periods", "subscriptions", "plan_versions", "price_versions"):
        op.drop_table(table)


def _tables() -> None:
    op.create_table(
        "price_versions",
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("text_in", sa.BigInteger(), nullable=False),
        sa.Column("image_in", sa.BigInteger(), nullable=False),
        sa.Column("cached_in", sa.BigInteger(), nullable=False),
        sa.Column("output", sa.BigInteger(), nullable=False),
        sa.Column("reasoning", sa.BigInteger(), nullable=False),
        sa.Column("request_fee", sa.BigInteger(), nullable=False),
        sa.Column("effective_from", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("cached_in BETWEEN 0 AND 1000000000", name="ck_price_versions_cached_in"),
        sa.CheckConstraint("image_in BETWEEN 0 AND 1000000000", name="ck_price_versions_image_in"),
        sa.CheckConstraint("output BETWEEN 0 AND 1000000000", name="ck_price_versions_output"),
        sa.CheckConstraint("reasoning BETWEEN 0 AND 1000000000", name="ck_price_versions_reasoning"),
        sa.CheckConstraint("request_fee BETWEEN 0 AND 1000000000000000", name="ck_price_versions_request_fee"),
        sa.CheckConstraint("text_in BETWEEN 0 AND 1000000000", name="ck_price_versions_text_in"),
        sa.PrimaryKeyConstraint("model", "version", name="pk_price_versions"),
    )
    op.create_index("uq_price_versions_start", "price_versions", ["model", "currency", "effective_from"], unique=True)
    op.create_table(
        "plan_versions",
        sa.Column("plan_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("monthly_fee", sa.BigInteger(), nullable=False),
        sa.Column("included", sa.BigInteger(), nullable=False),
        sa.Column("overage", sa.String(length=8), nullable=False),
        sa.Column("overage_limit", sa.BigInteger(), nullable=False),
        sa.Column("limits", sa.Text(), nullable=False),
        sa.Column("outage", sa.String(length=8), nullable=False),
        sa.Column("outage_bound", sa.BigInteger(), nullable=False),
        sa.Column("trial_days", sa.Integer(), nullable=True),
        sa.Column("next_plan", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('standard', 'trial', 'partner')", name="ck_plan_versions_kind"),
        sa.CheckConstraint("outage IN ('refuse', 'allow')", name="ck_plan_versions_outage"),
        sa.CheckConstraint("overage IN ('stop', 'bill')", name="ck_plan_versions_overage"),
        sa.CheckConstraint("included BETWEEN 0 AND 1000000000000000", name="ck_plan_versions_included"),
        sa.CheckConstraint("monthly_fee BETWEEN 0 AND 1000000000000000", name="ck_plan_versions_monthly_fee"),
        sa.CheckConstraint("outage_bound BETWEEN 0 AND 1000000000000000", name="ck_plan_versions_outage_bound"),
        sa.CheckConstraint("overage_limit BETWEEN 0 AND 1000000000000000", name="ck_plan_versions_overage_limit"),
        sa.PrimaryKeyConstraint("plan_id", "version", name="pk_plan_versions"),
    )
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.String(length=96), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("plan_id", sa.String(length=64), nullable=False),
        sa.Column("plan_version", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("trial_ends_at", sa.BigInteger(), nullable=True),
        sa.Column("periods", sa.Integer(), nullable=False),
        sa.Column("period_ends_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name="fk_subscriptions_organisation_id_organisations"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_subscriptions"),
    )
    op.create_index("ix_subscriptions_organisation_id", "subscriptions", ["organisation_id"], unique=False)
    op.create_index(
        "uq_subscriptions_current",
        "subscriptions",
        ["organisation_id"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "subscription_periods",
        sa.Column("subscription_id", sa.String(length=96), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=False),
        sa.Column("fee", sa.BigInteger(), nullable=False),
        sa.Column("included", sa.BigInteger(), nullable=False),
        sa.Column("overage", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["subscription_id"], ["subscriptions.id"], name="fk_subscription_periods_subscription_id_subscriptions"
        ),
        sa.PrimaryKeyConstraint("subscription_id", "number", name="pk_subscription_periods"),
    )
    op.create_table(
        "caps",
        sa.Column("scope_id", sa.String(length=64), nullable=False),
        sa.Column("monthly", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("monthly >= 0", name="ck_caps_monthly"),
        sa.PrimaryKeyConstraint("scope_id", name="pk_caps"),
    )
