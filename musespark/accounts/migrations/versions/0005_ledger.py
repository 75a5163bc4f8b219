"""The ledger: balances moved by transfers, holds, usage records, spending, credit lots."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from musespark.accounts import append_only

revision = "0005"
down_revision = "0004"

APPEND_ONLY = ("transfers", "usage_records")
ACCOUNTS = ("wallet", "held", "revenue", "receivable", "funding", "granted", "expired", "written_off")

# A transfer moves its two balances, and a debit may not take the wallet below its overdraft.
MOVE = (
    "UPDATE balances SET "
    + ", ".join(
        f"{name} = {name} + CASE WHEN NEW.credit = '{name}' THEN NEW.amount "
        f"WHEN NEW.debit = '{name}' THEN -NEW.amount ELSE 0 END"
        for name in ACCOUNTS
    )
    + " WHERE organisation_id = NEW.organisation_id"
)
OVERDRAWN = (
    "FROM balances WHERE organisation_id = NEW.organisation_id AND NEW.debit = 'wallet' AND NEW.amount > 0 "
    "AND wallet < -overdraft"
)
ABOVE_CAP = "FROM caps WHERE scope_id = NEW.scope_id AND NEW.held + NEW.posted > monthly"

SQLITE = (
    f"CREATE TRIGGER transfers_move AFTER INSERT ON transfers BEGIN {MOVE}; "
    f"SELECT RAISE(ABORT, 'the wallet is overdrawn') {OVERDRAWN}; END",
    f"CREATE TRIGGER spending_cap_insert AFTER INSERT ON spending BEGIN "
    f"SELECT RAISE(ABORT, 'the cap is exceeded') {ABOVE_CAP}; END",
    f"CREATE TRIGGER spending_cap_update AFTER UPDATE ON spending "
    f"WHEN NEW.held + NEW.posted > OLD.held + OLD.posted BEGIN "
    f"SELECT RAISE(ABORT, 'the cap is exceeded') {ABOVE_CAP}; END",
    "CREATE TRIGGER holds_resolved_once BEFORE UPDATE ON holds WHEN OLD.state <> 'open' "
    "BEGIN SELECT RAISE(ABORT, 'the hold is resolved'); END",
    "CREATE TRIGGER holds_stay BEFORE DELETE ON holds BEGIN SELECT RAISE(ABORT, 'holds are never deleted'); END",
)

POSTGRESQL = (
    f"""CREATE FUNCTION transfers_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    {MOVE};
    PERFORM 1 {OVERDRAWN};
    IF FOUND THEN RAISE EXCEPTION 'the wallet is overdrawn'; END IF;
    RETURN NULL; END $$""",
    "CREATE TRIGGER transfers_move AFTER INSERT ON transfers FOR EACH ROW EXECUTE FUNCTION transfers_move()",
    f"""CREATE FUNCTION spending_cap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP = 'UPDATE' AND NEW.held + NEW.posted <= OLD.held + OLD.posted THEN RETURN NULL; END IF;
    PERFORM 1 {ABOVE_CAP};
    IF FOUND THEN RAISE EXCEPTION 'the cap is exceeded'; END IF;
    RETURN NULL; END $$""",
    "CREATE TRIGGER spending_cap AFTER INSERT OR UPDATE ON spending FOR EACH ROW EXECUTE FUNCTION spending_cap()",
    """CREATE FUNCTION holds_resolved_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP = 'DELETE' THEN RAISE EXCEPTION 'holds are never deleted'; END IF;
    IF OLD.state <> 'open' THEN RAISE EXCEPTION 'the hold is resolved'; END IF;
    RETURN NEW; END $$""",
    "CREATE TRIGGER holds_resolved_once BEFORE UPDATE OR DELETE ON holds "
    "FOR EACH ROW EXECUTE FUNCTION holds_resolved_once()",
)


def upgrade() -> None:
    _tables()
    dialect = op.get_bind().dialect.name
    for table in APPEND_ONLY:
        for statement in append_only.statements(table, dialect):
            op.execute(statement)
    for statement in SQLITE if dialect == "sqlite" else POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    dialect = op.get_bind().dialect.name
    for table in APPEND_ONLY:
        for statement in append_only.undo(table, dialect):
            op.execute(statement)
    for table in ("credit_lots", "spending", "usage_records", "holds", "transfers", "balances"):
        op.drop_table(table)
    if dialect != "sqlite":
        for function in ("transfers_move", "spending_cap", "holds_resolved_once"):
            op.execute(f"DROP FUNCTION {function}()")


def _tables() -> None:
    op.create_table(
        "balances",
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("wallet", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("held", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("revenue", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("receivable", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("funding", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("granted", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("expired", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("written_off", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("overdraft", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attention_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("held >= 0", name="ck_balances_held"),
        sa.CheckConstraint("overdraft >= 0", name="ck_balances_overdraft"),
        sa.CheckConstraint(
            "wallet + held + revenue + receivable + funding + granted + expired + written_off = 0",
            name="ck_balances_balanced",
        ),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name="fk_balances_organisation_id_organisations"
        ),
        sa.PrimaryKeyConstraint("organisation_id", name="pk_balances"),
    )
    op.create_table(
        "transfers",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("debit", sa.String(length=16), nullable=False),
        sa.Column("credit", sa.String(length=16), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("hold_id", sa.String(length=160), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "credit IN ('wallet', 'held', 'revenue', 'receivable', 'funding', 'granted', 'expired', 'written_off')",
            name="ck_transfers_credit",
        ),
        sa.CheckConstraint(
            "debit IN ('wallet', 'held', 'revenue', 'receivable', 'funding', 'granted', 'expired', 'written_off')",
            name="ck_transfers_debit",
        ),
        sa.CheckConstraint(
            "kind IN ('hold', 'extend', 'release', 'post', 'void', "
            "'expire', 'extra', 'late', 'write_off', 'top_up', 'refund', 'grant', "
            "'credit_expiry', 'fee', 'fee_credit', 'overage', 'payment', 'adjustment')",
            name="ck_transfers_kind",
        ),
        sa.CheckConstraint("amount >= 0", name="ck_transfers_amount"),
        sa.CheckConstraint("debit <> credit", name="ck_transfers_sides"),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["balances.organisation_id"], name="fk_transfers_organisation_id_balances"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_transfers"),
    )
    op.create_index("ix_transfers_hold_id", "transfers", ["hold_id"], unique=False)
    op.create_index("ix_transfers_organisation", "transfers", ["organisation_id", "created_at"], unique=False)
    op.create_table(
        "holds",
        sa.Column("id", sa.String(length=160), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("price_version", sa.Integer(), nullable=False),
        sa.Column("price_text_in", sa.BigInteger(), nullable=False),
        sa.Column("price_image_in", sa.BigInteger(), nullable=False),
        sa.Column("price_cached_in", sa.BigInteger(), nullable=False),
        sa.Column("price_output", sa.BigInteger(), nullable=False),
        sa.Column("price_reasoning", sa.BigInteger(), nullable=False),
        sa.Column("request_fee", sa.BigInteger(), nullable=False),
        sa.Column("period", sa.String(length=7), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("outcome", sa.String(length=32), nullable=True),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.Column("granted_output", sa.BigInteger(), nullable=False),
        sa.Column("extensions", sa.Integer(), server_default="0", nullable=False),
        sa.Column("waiting", sa.Integer(), server_default="0", nullable=False),
        sa.Column("used_text_in", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("used_image_in", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("used_cached_in", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("used_output", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("used_reasoning", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("resolved_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(state = 'open') = (resolved_at IS NULL)", name="ck_holds_resolved"),
        sa.CheckConstraint("state = 'open' OR held = 0", name="ck_holds_released"),
        sa.CheckConstraint("state IN ('open', 'posted', 'void', 'expired')", name="ck_holds_state"),
        sa.CheckConstraint("held >= 0", name="ck_holds_held"),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["balances.organisation_id"], name="fk_holds_organisation_id_balances"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_holds"),
    )
    op.create_index(
        "ix_holds_expiry",
        "holds",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "ix_holds_open",
        "holds",
        ["organisation_id"],
        unique=False,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index("ix_holds_request_id", "holds", ["request_id"], unique=False)
    op.create_table(
        "usage_records",
        sa.Column("hold_id", sa.String(length=160), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("period", sa.String(length=7), nullable=False),
        sa.Column("text_in", sa.BigInteger(), nullable=False),
        sa.Column("image_in", sa.BigInteger(), nullable=False),
        sa.Column("cached_in", sa.BigInteger(), nullable=False),
        sa.Column("output", sa.BigInteger(), nullable=False),
        sa.Column("reasoning", sa.BigInteger(), nullable=False),
        sa.Column("total_tokens", sa.BigInteger(), nullable=False),
        sa.Column("price_version", sa.Integer(), nullable=False),
        sa.Column("price_text_in", sa.BigInteger(), nullable=False),
        sa.Column("price_image_in", sa.BigInteger(), nullable=False),
        sa.Column("price_cached_in", sa.BigInteger(), nullable=False),
        sa.Column("price_output", sa.BigInteger(), nullable=False),
        sa.Column("price_reasoning", sa.BigInteger(), nullable=False),
        sa.Column("request_fee", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("billed", sa.BigInteger(), nullable=False),
        sa.Column("written_off", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("settled_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "amount = text_in * price_text_in + "
            "image_in * price_image_in + cached_in * price_cached_in + output * price_output"
            " + reasoning * price_reasoning + request_fee",
            name="ck_usage_records_amount",
        ),
        sa.CheckConstraint(
            "billed >= 0 AND written_off >= 0 AND billed + written_off = amount", name="ck_usage_records_billed"
        ),
        sa.CheckConstraint(
            "text_in >= 0 AND image_in >= 0 AND cached_in >= 0 AND output >= 0 AND reasoning >= 0",
            name="ck_usage_records_counts",
        ),
        sa.CheckConstraint(
            "total_tokens = text_in + image_in + cached_in + output + reasoning", name="ck_usage_records_partition"
        ),
        sa.ForeignKeyConstraint(["hold_id"], ["holds.id"], name="fk_usage_records_hold_id_holds"),
        sa.PrimaryKeyConstraint("hold_id", "part", name="pk_usage_records"),
    )
    op.create_index("ix_usage_records_organisation", "usage_records", ["organisation_id", "settled_at"], unique=False)
    op.create_index("ix_usage_records_request_id", "usage_records", ["request_id"], unique=False)
    op.create_table(
        "spending",
        sa.Column("scope_id", sa.String(length=64), nullable=False),
        sa.Column("period", sa.String(length=7), nullable=False),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.Column("posted", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("held >= 0 AND posted >= 0", name="ck_spending_counts"),
        sa.PrimaryKeyConstraint("scope_id", "period", name="pk_spending"),
    )
    op.create_table(
        "credit_lots",
        sa.Column("id", sa.String(length=160), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("remaining", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("amount > 0 AND remaining BETWEEN 0 AND amount", name="ck_credit_lots_remaining"),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["balances.organisation_id"], name="fk_credit_lots_organisation_id_balances"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_credit_lots"),
    )
    op.create_index("ix_credit_lots_organisation_id", "credit_lots", ["organisation_id"], unique=False)
