"""The ledger: balances that transfers move, holds, usage records, monthly spending, credit lots.

One row of `balances` is an organisation's whole set of accounts. Its columns are credits minus debits and always sum to
zero: the database checks it. Rows of `transfers` are the only thing that moves them, by a trigger, so a balance can't
differ from its transfers. All amounts are integer nano-units of the organisation's currency.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, String, Table, text

from musespark.accounts.tables.base import metadata
from musespark.accounts.tables.prices import PRICE_UNITS

# wallet: credit that can be spent, negative where a plan bills later. held: promised to requests in flight.
# revenue: earned. receivable: fees and overage to be invoiced (negative: owed to us). funding: money that came in
# (negative). granted: credit given away (negative). expired: credit that ran out. written_off: used, but not charged.
ACCOUNTS = ("wallet", "held", "revenue", "receivable", "funding", "granted", "expired", "written_off")

TRANSFER_KINDS = (
    "hold", "extend", "release", "post", "void", "expire", "extra", "late", "write_off",
    "top_up", "refund", "grant", "credit_expiry", "fee", "fee_credit", "overage", "payment", "adjustment",
)  # fmt: skip

balances = Table(
    "balances",
    metadata,
    Column("organisation_id", ForeignKey("organisations.id"), primary_key=True),
    Column("currency", String(3), nullable=False),
    *(Column(account, BigInteger, nullable=False, server_default="0") for account in ACCOUNTS),
    Column("overdraft", BigInteger, nullable=False, server_default="0"),  # how far below zero the wallet may go
    Column("attention_at", BigInteger),  # when credit expires or a period ends: the next hold or job looks after it
    CheckConstraint(" + ".join(ACCOUNTS) + " = 0", name="balanced"),
    CheckConstraint("held >= 0", name="held"),
    CheckConstraint("overdraft >= 0", name="overdraft"),
)

# Append-only. Ids are derived from what they are for, so doing something twice is a duplicate, not a second transfer.
transfers = Table(
    "transfers",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("organisation_id", ForeignKey("balances.organisation_id"), nullable=False),
    Column("debit", String(16), nullable=False),
    Column("credit", String(16), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("hold_id", String(160)),
    Column("created_at", BigInteger, nullable=False),
    CheckConstraint("amount >= 0", name="amount"),
    CheckConstraint("debit <> credit", name="sides"),
    *(
        CheckConstraint(f"{side} IN ({', '.join(repr(account) for account in ACCOUNTS)})", name=side)
        for side in ("debit", "credit")
    ),
    CheckConstraint(f"kind IN ({', '.join(repr(kind) for kind in TRANSFER_KINDS)})", name="kind"),
    Index("ix_transfers_organisation", "organisation_id", "created_at"),
    Index("ix_transfers_hold_id", "hold_id"),
)

USED = tuple(f"used_{unit}" for unit in PRICE_UNITS)

# A row changes only while it is open (a trigger refuses the rest): open -> posted | void | expired.
holds = Table(
    "holds",
    metadata,
    Column("id", String(160), primary_key=True),  # <request>/<attempt>
    Column("request_id", String(128), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("organisation_id", ForeignKey("balances.organisation_id"), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("model", String(200), nullable=False),
    Column("price_version", Integer, nullable=False),
    *(Column(f"price_{unit}", BigInteger, nullable=False) for unit in PRICE_UNITS),
    Column("request_fee", BigInteger, nullable=False),
    Column("period", String(7), nullable=False),  # the UTC month of the opening: all of it counts there
    Column("state", String(8), nullable=False),
    Column("outcome", String(32)),
    Column("held", BigInteger, nullable=False),  # what it holds now
    Column("granted_output", BigInteger, nullable=False),
    Column("extensions", Integer, nullable=False, server_default="0"),
    Column("waiting", Integer, nullable=False, server_default="0"),  # 1: all it holds is used up, it can't free any
    *(Column(used, BigInteger, nullable=False, server_default="0") for used in USED),  # as last reported
    Column("owner", String(64), nullable=False),  # the process, by its journal
    Column("opened_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("resolved_at", BigInteger),
    CheckConstraint("held >= 0", name="held"),
    CheckConstraint("state IN ('open', 'posted', 'void', 'expired')", name="state"),
    CheckConstraint("(state = 'open') = (resolved_at IS NULL)", name="resolved"),
    CheckConstraint("state = 'open' OR held = 0", name="released"),
    Index("ix_holds_request_id", "request_id"),
    Index(
        "ix_holds_open",
        "organisation_id",
        sqlite_where=text("state = 'open'"),
        postgresql_where=text("state = 'open'"),
    ),
    Index(
        "ix_holds_expiry",
        "expires_at",
        sqlite_where=text("state = 'open'"),
        postgresql_where=text("state = 'open'"),
    ),
)

# Append-only. The five kinds of tokens partition the request's tokens, and the amount is theirs times the prices that
# the row carries: both are checked by the database. Part 1 exists only where usage arrived after the hold had expired.
usage_records = Table(
    "usage_records",
    metadata,
    Column("hold_id", ForeignKey("holds.id"), primary_key=True),
    Column("part", Integer, primary_key=True),
    Column("request_id", String(128), nullable=False),
    Column("organisation_id", String(64), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("model", String(200), nullable=False),
    Column("period", String(7), nullable=False),
    *(Column(unit, BigInteger, nullable=False) for unit in PRICE_UNITS),
    Column("total_tokens", BigInteger, nullable=False),
    Column("price_version", Integer, nullable=False),
    *(Column(f"price_{unit}", BigInteger, nullable=False) for unit in PRICE_UNITS),
    Column("request_fee", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("billed", BigInteger, nullable=False),
    Column("written_off", BigInteger, nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    Column("settled_at", BigInteger, nullable=False),
    CheckConstraint(" AND ".join(f"{unit} >= 0" for unit in PRICE_UNITS), name="counts"),
    CheckConstraint(f"total_tokens = {' + '.join(PRICE_UNITS)}", name="partition"),
    CheckConstraint(
        f"amount = {' + '.join(f'{unit} * price_{unit}' for unit in PRICE_UNITS)} + request_fee", name="amount"
    ),
    CheckConstraint("billed >= 0 AND written_off >= 0 AND billed + written_off = amount", name="billed"),
    Index("ix_usage_records_request_id", "request_id"),
    Index("ix_usage_records_organisation", "organisation_id", "settled_at"),
)

# A trigger refuses what would bring held + posted above the scope's cap.
spending = Table(
    "spending",
    metadata,
    Column("scope_id", String(64), primary_key=True),
    Column("period", String(7), primary_key=True),
    Column("held", BigInteger, nullable=False),
    Column("posted", BigInteger, nullable=False),
    CheckConstraint("held >= 0 AND posted >= 0", name="counts"),
)

# What a wallet's credit consists of. `remaining` is brought up to date when lots are added, expire or are shown:
# between these moments spending takes the lot that ends first, so nothing is lost by doing it late.
credit_lots = Table(
    "credit_lots",
    metadata,
    Column("id", String(160), primary_key=True),
    Column("organisation_id", ForeignKey("balances.organisation_id"), nullable=False, index=True),
    Column("amount", BigInteger, nullable=False),
    Column("remaining", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("source", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    CheckConstraint("amount > 0 AND remaining BETWEEN 0 AND amount", name="remaining"),
)
