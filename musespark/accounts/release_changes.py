"""Changing releases: each change with who, when and why, in the release's own history and in the audit log.

Every function runs in one transaction that holds the write lock, so two people can't move a release past each other.
`why` must say something everywhere: six months later it is the only thing that still explains a date.
"""

from __future__ import annotations

import re
from dataclasses import replace

import sqlalchemy as sa

from musespark.accounts import release_stages, tables
from musespark.accounts.release_audience import AudienceChanges
from musespark.accounts.release_history import checked_model, checked_reason, find, release_values
from musespark.accounts.release_stages import ALL_BASIS_POINTS, DataPolicy, EventKind, Release, iso, iso_or_none
from musespark.accounts.releases import exists
from musespark.errors import Conflict, InvalidRequest, MoveNotAllowed

LONGEST_RETENTION_DAYS = 3650
FARTHEST_S = 20 * 366 * 86_400
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")


class ReleaseChanges(AudienceChanges):
    """Everything that can be done to a release."""

    def create(self, name: str, model: str, why: str, policy: DataPolicy | None = None) -> Release:
        """A release in stage draft. Raises Conflict if the name is taken, InvalidRequest for unusable values."""
        name, model, why = checked_model(name, "name"), checked_model(model, "model"), checked_reason(why)
        policy = checked_policy(policy or DataPolicy())
        now = int(self._now())
        release = Release(name, model, "draft", data_policy=policy, created_at=now, stage_since=now)
        with self._database.write() as connection:
            if exists(connection, name):
                raise Conflict(f"there is a release or an alias {name!r} already", param="name")
            connection.execute(sa.insert(tables.releases).values(**release_values(release)))
            self._note(connection, name, "created", None, model, why)
        return release

    def move(
        self, name: str, to: str, why: str, *, shutdown_at: int | None = None, replacement: str | None = None
    ) -> Release:
        """To another stage. Raises MoveNotAllowed, or InvalidRequest where the stage needs what is not given.

        public without a launch date begins now; deprecated needs `shutdown_at` and may name a `replacement`.
        """
        stage, why, now = release_stages.checked_stage(to), checked_reason(why), int(self._now())
        if stage != "deprecated" and (shutdown_at is not None or replacement is not None):
            raise InvalidRequest("a shutdown date and a replacement belong to the stage deprecated", param="to")
        with self._database.write() as connection:
            before = find(connection, name)
            release_stages.check_move(before, stage, now)
            after = replace(before, stage=stage, stage_since=now)
            if stage == "public" and before.stage != "deprecated":
                self._check_launch(connection, before, now, why)
                after = replace(after, launch_at=now if before.launch_at is None else before.launch_at)
            elif before.stage == "public" and stage == "waitlist":  # everybody who came keeps the way in
                after = replace(after, ramp_basis_points=ALL_BASIS_POINTS, launch_at=None)
            elif stage == "deprecated":
                shutdown_at = release_stages.check_shutdown(before, shutdown_at, now)
                if replacement is not None:
                    self._check_replacement(connection, before, replacement)
                after = replace(after, shutdown_at=shutdown_at, replacement=replacement)
                self._note(connection, name, "shutdown_set", None, iso(shutdown_at), why)
            elif before.stage == "deprecated" and stage == "public":
                after = replace(after, shutdown_at=None, replacement=None)
            elif stage in ("partner", "internal", "draft"):
                after = replace(after, ramp_basis_points=0)
            self._save(connection, after)
            self._note(connection, name, "moved", before.stage, stage, why)
        return after

    def commit_launch(self, name: str, launch_at: int, why: str) -> Release:
        """Commit to a launch date. A later one than before is recorded as a slip, an earlier one as an advance."""
        why, now = checked_reason(why), int(self._now())
        if not now < launch_at < now + FARTHEST_S:
            raise InvalidRequest(
                f"the launch date {launch_at} (UTC seconds since 1970) must be in the next 20 years", param="launch_at"
            )
        with self._database.write() as connection:
            before = find(connection, name)
            if before.stage in ("deprecated", "retired") or (
                before.stage == "public" and before.stage_at(now) == "public"
            ):
                raise MoveNotAllowed(f"{name} has been launched already; its launch date is history")
            self._save(connection, replace(before, launch_at=launch_at))
            kind: EventKind = "launch_committed"
            if before.launch_at is not None:
                kind = "launch_slipped" if launch_at > before.launch_at else "launch_advanced"
            self._note(connection, name, kind, iso_or_none(before.launch_at), iso(launch_at), why)
            return find(connection, name)

    def ramp(self, name: str, percent: float, why: str) -> Release:
        """Let in `percent` of all organisations from the waitlist stage; it never shrinks, so nobody is put out."""
        why = checked_reason(why)
        basis_points = round(percent * 100) if 0 <= percent <= 100 else -1
        if basis_points < 0 or abs(basis_points - percent * 100) > 1e-6:
            raise InvalidRequest("percent must be from 0 to 100, with at most two decimals", param="percent")
        with self._database.write() as connection:
            before = find(connection, name)
            if before.stage != "waitlist":
                raise MoveNotAllowed(f"{name} is in stage {before.stage}; a percentage belongs to the stage waitlist")
            if basis_points < before.ramp_basis_points:
                raise MoveNotAllowed(
                    f"{name} is at {_percent(before.ramp_basis_points)}; less would put out organisations that are in"
                )
            self._save(connection, replace(before, ramp_basis_points=basis_points))
            self._note(connection, name, "ramped", _percent(before.ramp_basis_points), _percent(basis_points), why)
            return find(connection, name)

    def set_policy(self, name: str, policy: DataPolicy, why: str) -> Release:
        """Change what happens with customers' data; a draft's freely, later never towards more than was promised."""
        policy, why = checked_policy(policy), checked_reason(why)
        with self._database.write() as connection:
            before = find(connection, name)
            old = before.data_policy
            worse = (policy.training and not old.training) or policy.retention_days > old.retention_days
            if before.stage not in ("draft", "internal") and (worse or policy.region != old.region):
                raise MoveNotAllowed(
                    f"customers have {name} under its data policy; training, a longer retention or another region need "
                    "a new release",
                )
            self._save(connection, replace(before, data_policy=policy))
            self._note(connection, name, "policy_changed", _policy_text(old), _policy_text(policy), why)
            return find(connection, name)

    def _check_launch(self, connection: sa.Connection, before: Release, now: int, why: str) -> None:
        """A launch after its date has slipped, whether anybody said so or not."""
        if before.launch_at is not None and before.launch_at < now - 86_400:
            self._note(connection, before.name, "launch_slipped", iso(before.launch_at), iso(now), why)

    def _check_replacement(self, connection: sa.Connection, before: Release, replacement: str) -> None:
        other = connection.scalar(
            sa.select(tables.release_aliases.c.release_name).where(tables.release_aliases.c.alias == replacement)
        )
        target = find(connection, other or replacement)
        if target.name == before.name:
            raise InvalidRequest("a release can't be its own replacement", param="replacement")
        if target.stage in ("draft", "internal", "deprecated", "retired"):
            raise InvalidRequest(
                f"{replacement!r} is in stage {target.stage}; it can't replace anything", param="replacement"
            )


def checked_policy(policy: DataPolicy) -> DataPolicy:
    if not 0 <= policy.retention_days <= LONGEST_RETENTION_DAYS:
        raise InvalidRequest(
            f"retention_days is {policy.retention_days}; it must be from 0 to {LONGEST_RETENTION_DAYS:,}",
            param="retention_days",
        )
    if not _REGION.fullmatch(policy.region):
        raise InvalidRequest(f"region is {policy.region[:64]!r}; write it like eu-west-1", param="region")
    return policy


def _percent(basis_points: int) -> str:
    return f"{basis_points / 100:g}%"


def _policy_text(policy: DataPolicy) -> str:
    return f"training={policy.training} retention_days={policy.retention_days} region={policy.region}"
