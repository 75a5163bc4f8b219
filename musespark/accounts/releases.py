"""Which release a public name means, and whether who asks is let in. Read for every request, so it is kept in memory.

The whole catalogue is read at once and kept for `CACHE_S`; while the database is away the last one goes on serving. A
model that is served and that no release names is public under its own name: with nothing configured, all is open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from musespark.accounts import tables
from musespark.accounts.database import Database
from musespark.accounts.release_stages import DataPolicy, Release, Stage, iso, iso_or_none
from musespark.accounts.verify import AWAY, RETRY_AFTER_MS, Identity
from musespark.errors import DatabaseUnavailable, InsufficientScope, ModelNotFound, ModelNotReleased, ModelShutdown

CACHE_S = 0.5


@dataclass(frozen=True, slots=True)
class Listed:
    """A name as one caller sees it. `snapshot` is the release that answers under this name now."""

    id: str
    release: Release
    alias_of: str | None
    admitted: bool
    stage: Stage

    @property
    def snapshot(self) -> str:
        return self.release.name

    def as_object(self) -> dict[str, Any]:
        """What `/v1/models` and `/v1/status` say of it."""
        release = self.release
        return {
            "stage": self.stage,
            "launch_at": iso_or_none(release.launch_at),
            "shutdown_date": iso_or_none(release.shutdown_at),
            "replacement": release.replacement,
            "alias_of": self.alias_of,
            "snapshot": self.snapshot,
            "admitted": self.admitted,
            "data_policy": {
                "training": release.data_policy.training,
                "retention_days": release.data_policy.retention_days,
                "region": release.data_policy.region,
            },
        }


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All releases at one moment. `invited`: organisations by release, partners and those from the waiting list."""

    releases: Mapping[str, Release] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    invited: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def admit(self, identity: Identity, public_name: str, served: Collection[str], now: float) -> Release:
        """The release that answers to `public_name`; `served` are the models that this process has.

        Raises ModelNotFound, ModelNotReleased (with the date), ModelShutdown (with the replacement), and
        InsufficientScope where the key is for other models.
        """
        release = self._resolve(public_name, served)
        if release is None or not self._knows(identity, release, now):
            raise self._unknown(identity, public_name, served, now)
        if identity.models is not None and not identity.models & {public_name, release.name}:
            raise InsufficientScope(
                f"this key is not for the model {public_name!r}, only for {', '.join(sorted(identity.models))}",
                param="model",
            )
        if release.stage_at(now) == "retired":
            raise _shut_down(public_name, release)
        if not self._lets_in(identity, release, now):
            raise _not_released(public_name, release)
        if release.model not in served:
            raise ModelNotFound(f"the model {public_name!r} is not served here", param="model")
        return release

    def visible(self, identity: Identity, served: Collection[str], now: float) -> list[Listed]:
        """The names that this caller may know of, sorted: what is announced, and what it is let in to."""
        listed = [self._listed(identity, name, served, now) for name in sorted(self._names(served))]
        return [
            item
            for item in listed
            if item is not None
            and item.stage != "retired"
            and (item.release.announced_at(now) or self._lets_in(identity, item.release, now))
        ]

    def find(self, identity: Identity, name: str, served: Collection[str], now: float) -> Listed:
        """One of `visible`, or one that is retired. Raises ModelNotFound."""
        listed = self._listed(identity, name, served, now)
        if listed is None:
            raise self._unknown(identity, name, served, now)
        return listed

    def calendar(self, served: Collection[str], now: float) -> list[Listed]:
        """What the world may know, for the status page; `admitted` says whether everybody is."""
        listed = [self._listed(NOBODY, name, served, now) for name in sorted(self._names(served))]
        return [item for item in listed if item is not None and item.release.announced_at(now)]

    def names_for_operators(self, served: Collection[str], now: float) -> list[str]:
        """What keys of an internal organisation may ask for."""
        return [item.id for item in self.visible(replace(NOBODY, internal=True), served, now) if item.admitted]

    def _names(self, served: Collection[str]) -> set[str]:
        return {*self.releases, *self.aliases, *self._implicit(served)}

    def _listed(self, identity: Identity, name: str, served: Collection[str], now: float) -> Listed | None:
        release = self._resolve(name, served)
        if release is None or not self._knows(identity, release, now):
            return None
        alias_of = release.name if name != release.name else None
        in_scope = identity.models is None or bool(identity.models & {name, release.name})
        admitted = in_scope and release.model in served and self._lets_in(identity, release, now)
        return Listed(name, release, alias_of, admitted, release.stage_at(now))

    def _resolve(self, name: str, served: Collection[str]) -> Release | None:
        release = self.releases.get(self.aliases.get(name, name))
        if release is None and name in self._implicit(served):
            release = Release(name=name, model=name, stage="public")
        return release

    def _implicit(self, served: Collection[str]) -> set[str]:
        """Models that are served and that nobody has made a release of."""
        return set(served) - {release.model for release in self.releases.values()} - {*self.aliases, *self.releases}

    def _lets_in(self, identity: Identity, release: Release, now: float) -> bool:
        invited = identity.organisation_id in self.invited.get(release.name, ())
        return release.lets_in(identity.organisation_id, internal=identity.internal, invited=invited, now=now)

    def _knows(self, identity: Identity, release: Release, now: float) -> bool:
        """Whether the caller may learn that it exists. A partner's release answers by name, without being listed."""
        stage = release.stage_at(now)
        return release.announced_at(now) or stage == "partner" or self._lets_in(identity, release, now)

    def _unknown(self, identity: Identity, name: str, served: Collection[str], now: float) -> ModelNotFound:
        names = [item.id for item in self.visible(identity, served, now) if item.admitted]
        offer = f"this server has {', '.join(map(repr, names[:10]))}" if names else "GET /v1/models lists what there is"
        return ModelNotFound(f"there is no model {name[:100]!r}; {offer}", param="model")


NOBODY = Identity(key_id="", project_id="", organisation_id="", cache_salt=b"")


class Releases:
    """The catalogue, read again when it is older than `CACHE_S`. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._catalogue: Catalogue | None = None
        self._fresh_until = 0.0  # on the monotonic clock
        self._generation = 0  # grows at a change: what was read before it must not be kept after it

    def remembered(self) -> Catalogue | None:
        """The catalogue if it is fresh; never blocks."""
        with self._lock:
            return self._catalogue if time.monotonic() < self._fresh_until else None

    def current(self) -> Catalogue:
        """The catalogue, read from the database if need be. Raises DatabaseUnavailable if it was never read before."""
        found = self.remembered()
        if found is not None:
            return found
        with self._lock:
            generation = self._generation
        try:
            catalogue = read_catalogue(self._database)
        except AWAY:
            with self._lock:
                if self._catalogue is None:
                    raise DatabaseUnavailable(
                        "the database can't be reached; try again in a moment", retry_after_ms=RETRY_AFTER_MS
                    ) from None
                catalogue = self._catalogue
        with self._lock:
            if generation == self._generation:
                self._catalogue, self._fresh_until = catalogue, time.monotonic() + CACHE_S
        return catalogue

    def forget(self) -> None:
        """Read again from now on; called after a change."""
        with self._lock:
            self._generation += 1
            self._fresh_until = 0.0


def read_catalogue(database: Database) -> Catalogue:
    invited: dict[str, set[str]] = {}
    with database.read() as connection:
        releases = {row.name: from_row(row) for row in connection.execute(sa.select(tables.releases))}
        aliases = {row.alias: row.release_name for row in connection.execute(sa.select(tables.release_aliases))}
        waiting = tables.early_access
        for query in (
            sa.select(tables.release_invitations.c.release_name, tables.release_invitations.c.organisation_id),
            sa.select(waiting.c.release_name, waiting.c.organisation_id).where(waiting.c.admitted_at.is_not(None)),
        ):
            for row in connection.execute(query):
                invited.setdefault(row.release_name, set()).add(row.organisation_id)
    return Catalogue(releases, aliases, {name: frozenset(ids) for name, ids in invited.items()})


def from_row(row: sa.Row[Any]) -> Release:
    policy = DataPolicy(row.training, row.retention_days, row.region)
    columns = ("name", "model", "stage", "ramp_basis_points", "launch_at", "shutdown_at", "replacement")
    values = {name: row._mapping[name] for name in (*columns, "created_at", "stage_since")}
    return Release(data_policy=policy, **values)


def exists(connection: sa.Connection, name: str) -> bool:
    """Whether a release or an alias has this name."""
    release = sa.select(tables.releases.c.name).where(tables.releases.c.name == name)
    alias = sa.select(tables.release_aliases.c.alias).where(tables.release_aliases.c.alias == name)
    return connection.scalar(release) is not None or connection.scalar(alias) is not None


def _not_released(public_name: str, release: Release) -> ModelNotReleased:
    launch_at = release.launch_at
    when = f"its launch is on {iso(launch_at)}" if launch_at else "it has no launch date yet"
    error = ModelNotReleased(
        f"{public_name!r} is not released to your organisation: {when}; apply with "
        f"POST /v1/releases/{release.name}/early-access",
        param="model",
    )
    error.details = {"launch_at": iso_or_none(launch_at)}
    return error


def _shut_down(public_name: str, release: Release) -> ModelShutdown:
    instead = f"use {release.replacement!r} instead" if release.replacement else "it has no replacement"
    since = f" since {iso(release.shutdown_at)}" if release.shutdown_at else ""
    error = ModelShutdown(f"{public_name!r} is shut down{since}; {instead}", param="model")
    error.details = {"shutdown_date": iso_or_none(release.shutdown_at), "replacement": release.replacement}
    return error
