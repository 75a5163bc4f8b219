"""Who comes in before everybody does, and under which names: invitations, the line for early access, aliases."""

from __future__ import annotations

import sqlalchemy as sa

from musespark.accounts import tables
from musespark.accounts.release_history import RecordedChanges, checked_model, checked_reason, find
from musespark.errors import Conflict, InvalidRequest, MoveNotAllowed, NotFound


class AudienceChanges(RecordedChanges):
    """Invitations, admissions and aliases."""

    def invite(self, name: str, organisation_id: str, why: str) -> None:
        """Put an organisation on the invitation list; again is harmless. Raises NotFound."""
        why = checked_reason(why)
        listed = tables.release_invitations
        with self._database.write() as connection:
            release = find(connection, name)
            if release.stage == "retired":
                raise MoveNotAllowed(f"{name} is retired; there is nothing to be invited to")
            _check_organisation(connection, organisation_id)
            here = (listed.c.release_name == name) & (listed.c.organisation_id == organisation_id)
            if connection.execute(sa.select(listed).where(here)).one_or_none() is None:
                connection.execute(
                    sa.insert(listed).values(
                        release_name=name, organisation_id=organisation_id, invited_at=int(self._now())
                    )
                )
                self._note(connection, name, "invited", None, organisation_id, why)

    def uninvite(self, name: str, organisation_id: str, why: str) -> None:
        """Take an organisation from the invitation list. Raises NotFound if it is not on it."""
        why = checked_reason(why)
        listed = tables.release_invitations
        with self._database.write() as connection:
            find(connection, name)
            gone = connection.execute(
                sa.delete(listed).where(listed.c.release_name == name, listed.c.organisation_id == organisation_id)
            )
            if gone.rowcount == 0:
                raise NotFound(f"{organisation_id[:80]!r} is not invited to {name}")
            self._note(connection, name, "uninvited", organisation_id, None, why)

    def set_alias(self, alias: str, name: str, why: str) -> None:
        """Let `alias` mean this release from now on. Raises Conflict if it is the name of a release itself."""
        alias, why = checked_model(alias, "alias"), checked_reason(why)
        table = tables.release_aliases
        with self._database.write() as connection:
            release = find(connection, name)
            if release.stage == "retired":
                raise MoveNotAllowed(f"{name} is retired; an alias would lead nowhere")
            if connection.scalar(sa.select(tables.releases.c.name).where(tables.releases.c.name == alias)) is not None:
                raise Conflict(f"{alias!r} is a release itself, and no other can answer to its name", param="alias")
            old = connection.scalar(sa.select(table.c.release_name).where(table.c.alias == alias))
            connection.execute(sa.delete(table).where(table.c.alias == alias))
            connection.execute(sa.insert(table).values(alias=alias, release_name=name, moved_at=int(self._now())))
            self._note(connection, name, "alias_set", old, name, why, alias=alias)

    def remove_alias(self, alias: str, why: str) -> None:
        why = checked_reason(why)
        table = tables.release_aliases
        with self._database.write() as connection:
            name = connection.scalar(sa.select(table.c.release_name).where(table.c.alias == alias))
            if name is None:
                raise NotFound(f"there is no alias {alias[:100]!r}")
            connection.execute(sa.delete(table).where(table.c.alias == alias))
            self._note(connection, name, "alias_removed", alias, None, why, alias=alias)

    def admit(self, name: str, why: str, *, next_in_line: int) -> list[str]:
        """Let in the first few who wait for early access; returns their organisations."""
        why = checked_reason(why)
        if not 1 <= next_in_line <= 10_000:
            raise InvalidRequest(f"next is {next_in_line}; it must be from 1 to 10,000", param="next")
        table, now = tables.early_access, int(self._now())
        with self._database.write() as connection:
            release = find(connection, name)
            if release.stage not in ("partner", "waitlist"):
                raise MoveNotAllowed(f"{name} is in stage {release.stage}; people are let in at partner and waitlist")
            waiting = (
                sa.select(table.c.id, table.c.organisation_id)
                .where(table.c.release_name == name, table.c.admitted_at.is_(None))
                .order_by(table.c.id)
                .limit(next_in_line)
            )
            rows = connection.execute(waiting).all()
            for row in rows:
                connection.execute(sa.update(table).where(table.c.id == row.id).values(admitted_at=now))
                self._note(connection, name, "admitted", None, row.organisation_id, why)
        return [row.organisation_id for row in rows]


def _check_organisation(connection: sa.Connection, organisation_id: str) -> None:
    table = tables.organisations
    if connection.scalar(sa.select(table.c.id).where(table.c.id == organisation_id)) is None:
        raise NotFound(f"there is no organisation {organisation_id[:80]!r}")
