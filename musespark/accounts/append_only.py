"""Triggers by which the database itself keeps a table append-only, in SQLite and PostgreSQL. For migrations."""

from __future__ import annotations

from collections.abc import Iterator


def statements(table: str, dialect: str) -> Iterator[str]:
    """What to execute so that rows of `table` are never changed or deleted again. `table` is a name of our own."""
    if dialect == "sqlite":
        for event in ("UPDATE", "DELETE"):
            yield (
                f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    yield (
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    yield (
        f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
    )


def undo(table: str, dialect: str) -> Iterator[str]:
    """What to execute before dropping `table`; SQLite drops its triggers with it."""
    if dialect != "sqlite":
        yield f"DROP TRIGGER {table}_no_change ON {table}"
        yield f"DROP FUNCTION {table}_append_only()"
