"""The one `metadata` that every table of the platform hangs on, with the rule that names constraints."""

from __future__ import annotations

from sqlalchemy import MetaData

# Constraints need names: SQLite can only alter a table by copying it, and Alembic finds what to copy by name.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
