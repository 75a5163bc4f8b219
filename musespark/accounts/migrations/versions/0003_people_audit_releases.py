"""People, sessions and service accounts; scopes of keys; the audit log; releases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from musespark.accounts import append_only

revision = "0003"
down_revision = "0002"

SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")
APPEND_ONLY = ("audit_events", "release_events")


def upgrade() -> None:
    op.add_column("organisations", sa.Column("internal", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("organisations", sa.Column("suspended_at", sa.BigInteger))
    op.execute(sa.text("UPDATE organisations SET internal = :yes").bindparams(yes=True))  # only the operator's so far
    op.add_column("projects", sa.Column("archived_at", sa.BigInteger))
    op.add_column("keys", sa.Column("access", sa.String(16), nullable=False, server_default="standard"))
    op.add_column("keys", sa.Column("models", sa.Text))
    op.add_column("keys", sa.Column("routes", sa.Text))
    op.add_column("keys", sa.Column("replaces", sa.String(64)))
    op.add_column("keys", sa.Column("service_account_id", sa.String(64)))
    op.create_table(
        "service_accounts",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("disabled_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_service_accounts"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_service_accounts_project_id_projects"),
    )
    op.create_index("ix_service_accounts_project_id", "service_accounts", ["project_id"])
    _people()
    _audit()
    _releases()
    for table in APPEND_ONLY:
        for statement in append_only.statements(table, op.get_bind().dialect.name):
            op.execute(statement)


def _people() -> None:
    op.create_table(
        "people",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("password_hash", sa.Text),
        sa.Column("operator", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("disabled_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_people"),
        sa.UniqueConstraint("email", name="uq_people_email"),
    )
    op.create_table(
        "memberships",
        sa.Column("person_id", sa.String(64), nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("person_id", "organisation_id", name="pk_memberships"),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_memberships_person_id_people"),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name="fk_memberships_organisation_id_organisations"
        ),
    )
    op.create_index("ix_memberships_organisation_id", "memberships", ["organisation_id"])
    op.create_table(
        "invitations",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("accepted_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_invitations"),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name="fk_invitations_organisation_id_organisations"
        ),
        sa.UniqueConstraint("digest", name="uq_invitations_digest"),
    )
    op.create_index("ix_invitations_organisation_id", "invitations", ["organisation_id"])
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("person_id", sa.String(64), nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("last_seen_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("source", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_sessions_person_id_people"),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name="fk_sessions_organisation_id_organisations"
        ),
        sa.UniqueConstraint("digest", name="uq_sessions_digest"),
    )
    op.create_index("ix_sessions_person_id", "sessions", ["person_id"])
    op.create_table(
        "oidc_identities",
        sa.Column("issuer", sa.String(300), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("person_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("issuer", "subject", name="pk_oidc_identities"),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_oidc_identities_person_id_people"),
    )
    op.create_index("ix_oidc_identities_person_id", "oidc_identities", ["person_id"])
    op.create_table(
        "oidc_sign_ins",
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("code_verifier", sa.String(128), nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_oidc_sign_ins"),
    )
    op.create_index("ix_oidc_sign_ins_expires_at", "oidc_sign_ins", ["expires_at"])
    op.create_table(
        "sign_in_attempts",
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("first_at", sa.BigInteger, nullable=False),
        sa.Column("locked_until", sa.BigInteger),
        sa.PrimaryKeyConstraint("digest", name="pk_sign_in_attempts"),
    )
    op.create_index("ix_sign_in_attempts_first_at", "sign_in_attempts", ["first_at"])


def _audit() -> None:
    op.create_table(
        "audit_events",
        sa.Column("id", SEQUENCE, nullable=False, autoincrement=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor_kind", sa.String(16), nullable=False),
        sa.Column("actor_id", sa.String(64), nullable=False),
        sa.Column("actor_name", sa.String(320), nullable=False),
        sa.Column("source", sa.String(200), nullable=False),
        sa.Column("request_id", sa.String(64)),
        sa.Column("organisation_id", sa.String(64)),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(200), nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_events"),
    )
    op.create_index("ix_audit_events_at", "audit_events", ["at"])
    op.create_index("ix_audit_events_organisation_id", "audit_events", ["organisation_id"])


def _releases() -> None:
    op.create_table(
        "releases",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("stage_since", sa.BigInteger, nullable=False),
        sa.Column("ramp_basis_points", sa.Integer, nullable=False),
        sa.Column("launch_at", sa.BigInteger),
        sa.Column("shutdown_at", sa.BigInteger),
        sa.Column("replacement", sa.String(100)),
        sa.Column("training", sa.Boolean, nullable=False),
        sa.Column("retention_days", sa.Integer, nullable=False),
        sa.Column("region", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_releases"),
    )
    op.create_index("ix_releases_model", "releases", ["model"])
    op.create_table(
        "release_events",
        sa.Column("id", SEQUENCE, nullable=False, autoincrement=True),
        sa.Column("release_name", sa.String(100), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("value_before", sa.String(200)),
        sa.Column("value_after", sa.String(200)),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("actor_kind", sa.String(16), nullable=False),
        sa.Column("actor_id", sa.String(64), nullable=False),
        sa.Column("actor_name", sa.String(320), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_release_events"),
        sa.ForeignKeyConstraint(["release_name"], ["releases.name"], name="fk_release_events_release_name_releases"),
    )
    op.create_index("ix_release_events_release_name", "release_events", ["release_name"])
    op.create_table(
        "release_aliases",
        sa.Column("alias", sa.String(100), nullable=False),
        sa.Column("release_name", sa.String(100), nullable=False),
        sa.Column("moved_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("alias", name="pk_release_aliases"),
        sa.ForeignKeyConstraint(["release_name"], ["releases.name"], name="fk_release_aliases_release_name_releases"),
    )
    op.create_index("ix_release_aliases_release_name", "release_aliases", ["release_name"])
    op.create_table(
        "release_invitations",
        sa.Column("release_name", sa.String(100), nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("invited_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("release_name", "organisation_id", name="pk_release_invitations"),
        sa.ForeignKeyConstraint(
            ["release_name"], ["releases.name"], name="fk_release_invitations_release_name_releases"
        ),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name="fk_release_invitations_organisation_id_organisations"
        ),
    )
    op.create_index("ix_release_invitations_organisation_id", "release_invitations", ["organisation_id"])
    op.create_table(
        "early_access",
        sa.Column("id", SEQUENCE, nullable=False, autoincrement=True),
        sa.Column("release_name", sa.String(100), nullable=False),
        sa.Column("organisation_id", sa.String(64), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("applied_at", sa.BigInteger, nullable=False),
        sa.Column("admitted_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_early_access"),
        sa.UniqueConstraint("release_name", "organisation_id", name="uq_early_access_release_name"),
        sa.ForeignKeyConstraint(["release_name"], ["releases.name"], name="fk_early_access_release_name_releases"),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name="fk_early_access_organisation_id_organisations"
        ),
    )
    op.create_index("ix_early_access_organisation_id", "early_access", ["organisation_id"])


def downgrade() -> None:
    for table in APPEND_ONLY:
        for statement in append_only.undo(table, op.get_bind().dialect.name):
            op.execute(statement)
    for table in (
        *("early_access", "release_invitations", "release_aliases", "release_events", "releases", "audit_events"),
        *("sign_in_attempts", "oidc_sign_ins", "oidc_identities", "sessions", "invitations", "memberships", "people"),
        "service_accounts",
    ):
        op.drop_table(table)
    for column in ("service_account_id", "replaces", "routes", "models", "access"):
        op.drop_column("keys", column)
    op.drop_column("projects", "archived_at")
    op.drop_column("organisations", "suspended_at")
    op.drop_column("organisations", "internal")
