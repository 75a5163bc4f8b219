"""The rules of a release's life, without a database: stages, allowed moves, dates, and who is let in when.

    draft → internal → partner → waitlist → public → deprecated → retired

`partner` lets in invited organisations, `waitlist` a percentage more of all, each always in or always out as it grows.
`public` begins at the launch date; until then who was let in before stays in, and nobody else comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Literal, get_args

from musespark.errors import InvalidRequest, MoveNotAllowed

Stage = Literal["draft", "internal", "partner", "waitlist", "public", "deprecated", "retired"]
EventKind = (
    Literal["created", "moved", "launch_committed", "launch_slipped", "launch_advanced", "shutdown_set", "ramped"]
    | Literal["alias_set", "alias_removed", "invited", "uninvited", "admitted", "policy_changed"]
)
STAGES: tuple[Stage, ...] = get_args(Stage)
ALL_BASIS_POINTS = 10_000

# Forward one by one, back where that breaks no promise made in public, and out by abandoning what was not public yet.
MOVES: Mapping[Stage, frozenset[Stage]] = {
    "draft": frozenset({"internal", "retired"}),
    "internal": frozenset({"partner", "draft", "retired"}),
    "partner": frozenset({"waitlist", "public", "internal", "retired"}),
    "waitlist": frozenset({"public", "partner", "retired"}),
    "public": frozenset({"deprecated", "waitlist"}),
    "deprecated": frozenset({"public", "retired"}),
    "retired": frozenset(),
}


@dataclass(frozen=True, slots=True)
class DataPolicy:
    """What happens with what customers send: whether it may be trained on, for how long it is kept, and where."""

    training: bool = False
    retention_days: int = 0
    region: str = "local"


@dataclass(frozen=True, slots=True)
class Release:
    """One snapshot under its public name. `model` is the provider's name for it. Times are UTC seconds since 1970.

    ramp_basis_points: hundredths of a percent of all organisations that the waitlist has let in.
    """

    name: str
    model: str
    stage: Stage
    ramp_basis_points: int = 0
    launch_at: int | None = None
    shutdown_at: int | None = None
    replacement: str | None = None
    data_policy: DataPolicy = DataPolicy()
    created_at: int = 0
    stage_since: int = 0

    def stage_at(self, now: float) -> Stage:
        """The stage in effect: before its date a launch has not happened, after its date a shutdown has."""
        if self.stage == "public" and self.launch_at is not None and now < self.launch_at:
            return "waitlist" if self.ramp_basis_points else "partner"
        if self.stage == "deprecated" and self.shutdown_at is not None and now >= self.shutdown_at:
            return "retired"
        return self.stage

    def lets_in(self, organisation_id: str, *, internal: bool, invited: bool, now: float) -> bool:
        """Whether an organisation may use it. `invited`: as a partner, or admitted from the waiting list."""
        match self.stage_at(now):
            case "public" | "deprecated":
                return True
            case "waitlist":
                return internal or invited or bucket(self.name, organisation_id) < self.ramp_basis_points
            case "partner":
                return internal or invited
            case "internal":
                return internal
            case _:
                return False

    def announced_at(self, now: float) -> bool:
        """Whether the world may know of it: it has a committed date, or it is past the point of being a secret."""
        stage = self.stage_at(now)
        if stage == "retired":
            return self.shutdown_at is not None  # others were abandoned before anybody heard of them
        return stage in ("waitlist", "public", "deprecated") or (stage == "partner" and self.launch_at is not None)

    def overdue_at(self, now: float) -> bool:
        """A committed date has passed and it is not public: a slip that nobody has recorded yet."""
        return (
            self.launch_at is not None and self.launch_at <= now and STAGES.index(self.stage) < STAGES.index("public")
        )

    def headers(self, now: float) -> dict[str, str]:
        """Response headers about its stage: RFC 9745 `Deprecation` and RFC 8594 `Sunset` where they apply."""
        headers: dict[str, str] = {"x-release-stage": self.stage_at(now)}
        if self.stage == "deprecated" and self.shutdown_at is not None:
            sunset = datetime.fromtimestamp(self.shutdown_at, UTC)
            headers |= {"deprecation": f"@{self.stage_since}", "sunset": format_datetime(sunset, usegmt=True)}
        return headers


def bucket(release: str, organisation_id: str) -> int:
    """0 to 9,999: an organisation's place in the ramp of this release, the same for ever; another in each release."""
    digest = hashlib.sha256(f"{release}\0{organisation_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % ALL_BASIS_POINTS


def checked_stage(stage: str) -> Stage:
    for known in STAGES:
        if stage == known:
            return known
    raise InvalidRequest(f"stage is {stage[:40]!r}; it must be one of {', '.join(STAGES)}", param="to")


def check_move(release: Release, to: Stage, now: float) -> None:
    """Raise MoveNotAllowed where the rules, or a promise with a date, stand against it."""
    allowed = MOVES[release.stage]
    if to not in allowed:
        options = ", ".join(stage for stage in STAGES if stage in allowed) or "nothing: it is gone for good"
        raise MoveNotAllowed(f"{release.name} is in stage {release.stage} and can't go to {to}; it can go to {options}")
    if release.stage == "deprecated" and to == "retired":
        assert release.shutdown_at is not None
        if now < release.shutdown_at:
            raise MoveNotAllowed(
                f"{release.name} is promised until {iso(release.shutdown_at)}; it can't be retired before"
            )


def check_shutdown(release: Release, shutdown_at: int | None, now: float) -> int:
    """The date that deprecating needs: in the future, and never before one that was promised already."""
    if shutdown_at is None:
        raise InvalidRequest("deprecated needs a shutdown date, so that customers can plan", param="shutdown_at")
    if shutdown_at <= now:
        raise InvalidRequest(f"the shutdown date {iso(shutdown_at)} is in the past", param="shutdown_at")
    if release.shutdown_at is not None and shutdown_at < release.shutdown_at:
        raise MoveNotAllowed(f"{release.name} is promised until {iso(release.shutdown_at)}; that can only get later")
    return shutdown_at


def iso(seconds: int | None) -> str:
    """`2026-12-01T09:00:00Z`, for people and JSON; None is said in words."""
    if seconds is None:
        return "no date"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_or_none(seconds: int | None) -> str | None:
    return None if seconds is None else iso(seconds)
