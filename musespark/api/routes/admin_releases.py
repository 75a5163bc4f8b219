"""The administrative API: releases, their stages and dates, aliases, partners and those who wait. For operators."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from musespark.accounts import early_access
from musespark.accounts.release_changes import ReleaseChanges
from musespark.accounts.release_stages import DataPolicy, Release, iso_or_none
from musespark.api.admin_body import Body, actor_of, answer, read_body, takes
from musespark.api.deps import services_of

router = APIRouter(prefix="/v1/admin", tags=["admin"])

Why = Field(max_length=4000)  # accounts.names has the exact rule
ModelName = Field(max_length=200)
Moment = Field(ge=0, le=10**11)  # UTC seconds since 1970


class PolicyBody(Body):
    """What happens with what customers send."""

    training: bool = False
    retention_days: int = 0
    region: str = Field("local", max_length=64)

    def to_policy(self) -> DataPolicy:
        return DataPolicy(self.training, self.retention_days, self.region)


class ReleaseBody(Body):
    name: str = ModelName
    model: str = ModelName
    why: str = Why
    data_policy: PolicyBody | None = None


class MoveBody(Body):
    to: str = Field(max_length=40)
    why: str = Why
    shutdown_at: int | None = Field(None, ge=0, le=10**11)
    replacement: str | None = Field(None, max_length=200)


class LaunchBody(Body):
    launch_at: int = Moment
    why: str = Why


class RampBody(Body):
    percent: float = Field(ge=0, le=100)
    why: str = Why


class PolicyChange(Body):
    data_policy: PolicyBody
    why: str = Why


class PartnerBody(Body):
    organisation_id: str = Field(max_length=64)
    why: str = Why


class AdmitBody(Body):
    next: int = 1
    why: str = Why


class AliasBody(Body):
    release: str = ModelName
    why: str = Why


class ReasonBody(Body):
    why: str = Why


@router.get("/releases")
async def list_releases(request: Request) -> Response:
    """Every release, whatever its stage."""
    releases = await asyncio.to_thread(early_access.list_releases, services_of(request).accounts.database)
    return answer([_shown(release) for release in releases])


@router.post("/releases", openapi_extra=takes(ReleaseBody), status_code=201)
async def create_release(request: Request) -> Response:
    """A draft. From now on the model answers to the names of its releases only."""
    body = await read_body(request, ReleaseBody)
    policy = None if body.data_policy is None else body.data_policy.to_policy()
    made = await _change(request, lambda changes: changes.create(body.name, body.model, body.why, policy))
    return answer(_shown(made), 201)


@router.get("/releases/{name}")
async def get_release(request: Request, name: str) -> Response:
    """One release with its whole history: who did what, when and why."""
    database = services_of(request).accounts.database
    events = await asyncio.to_thread(early_access.events, database, name)
    [release] = [one for one in await asyncio.to_thread(early_access.list_releases, database) if one.name == name]
    invited = await asyncio.to_thread(early_access.invited, database, name)
    return answer({**_shown(release), "invited": invited, "events": [_plain_event(event) for event in events]})


@router.post("/releases/{name}/move", openapi_extra=takes(MoveBody))
async def move_release(request: Request, name: str) -> Response:
    """To another stage; `deprecated` needs `shutdown_at`."""
    body = await read_body(request, MoveBody)
    moved = await _change(
        request,
        lambda changes: changes.move(
            name, body.to, body.why, shutdown_at=body.shutdown_at, replacement=body.replacement
        ),
    )
    return answer(_shown(moved))


@router.post("/releases/{name}/launch", openapi_extra=takes(LaunchBody))
async def commit_launch(request: Request, name: str) -> Response:
    """Commit to a launch date; a later one than before is recorded as a slip."""
    body = await read_body(request, LaunchBody)
    return answer(_shown(await _change(request, lambda changes: changes.commit_launch(name, body.launch_at, body.why))))


@router.post("/releases/{name}/ramp", openapi_extra=takes(RampBody))
async def ramp_release(request: Request, name: str) -> Response:
    body = await read_body(request, RampBody)
    return answer(_shown(await _change(request, lambda changes: changes.ramp(name, body.percent, body.why))))


@router.post("/releases/{name}/data-policy", openapi_extra=takes(PolicyChange))
async def set_policy(request: Request, name: str) -> Response:
    body = await read_body(request, PolicyChange)
    policy = body.data_policy.to_policy()
    return answer(_shown(await _change(request, lambda changes: changes.set_policy(name, policy, body.why))))


@router.post("/releases/{name}/invitations", openapi_extra=takes(PartnerBody), status_code=201)
async def invite_partner(request: Request, name: str) -> Response:
    body = await read_body(request, PartnerBody)
    await _change(request, lambda changes: changes.invite(name, body.organisation_id, body.why))
    return answer({"release": name, "organisation_id": body.organisation_id}, 201)


@router.delete("/releases/{name}/invitations/{organisation_id}", openapi_extra=takes(ReasonBody))
async def uninvite_partner(request: Request, name: str, organisation_id: str) -> Response:
    body = await read_body(request, ReasonBody)
    await _change(request, lambda changes: changes.uninvite(name, organisation_id, body.why))
    return answer({"release": name, "organisation_id": organisation_id, "removed": True})


@router.get("/releases/{name}/early-access")
async def list_applications(request: Request, name: str) -> Response:
    """Who waits, in order."""
    database = services_of(request).accounts.database
    return answer(await asyncio.to_thread(early_access.applications, database, name))


@router.post("/releases/{name}/early-access/admit", openapi_extra=takes(AdmitBody))
async def admit_next(request: Request, name: str) -> Response:
    """Let in the first `next` who wait."""
    body = await read_body(request, AdmitBody)
    admitted = await _change(request, lambda changes: changes.admit(name, body.why, next_in_line=body.next))
    return answer({"release": name, "admitted": admitted})


@router.get("/aliases")
async def list_aliases(request: Request) -> Response:
    found = await asyncio.to_thread(early_access.aliases, services_of(request).accounts.database)
    return answer([{"alias": alias, "release": release} for alias, release in sorted(found.items())])


@router.put("/aliases/{alias}", openapi_extra=takes(AliasBody))
async def set_alias(request: Request, alias: str) -> Response:
    body = await read_body(request, AliasBody)
    await _change(request, lambda changes: changes.set_alias(alias, body.release, body.why))
    return answer({"alias": alias, "release": body.release})


@router.delete("/aliases/{alias}", openapi_extra=takes(ReasonBody))
async def remove_alias(request: Request, alias: str) -> Response:
    body = await read_body(request, ReasonBody)
    await _change(request, lambda changes: changes.remove_alias(alias, body.why))
    return answer({"alias": alias, "removed": True})


async def _change(request: Request, work: Callable[[ReleaseChanges], Any]) -> Any:
    """Do `work` in a thread, in the name of who asks, and let this process see it at once."""
    accounts = services_of(request).accounts
    result = await asyncio.to_thread(work, ReleaseChanges(accounts.database, actor_of(request)))
    accounts.releases.forget()
    return result


def _shown(release: Release) -> dict[str, Any]:
    return {
        "name": release.name,
        "model": release.model,
        "stage": release.stage,
        "stage_since": iso_or_none(release.stage_since),
        "ramp_percent": release.ramp_basis_points / 100,
        "launch_at": iso_or_none(release.launch_at),
        "shutdown_date": iso_or_none(release.shutdown_at),
        "replacement": release.replacement,
        "data_policy": {
            "training": release.data_policy.training,
            "retention_days": release.data_policy.retention_days,
            "region": release.data_policy.region,
        },
        "created_at": iso_or_none(release.created_at),
    }


def _plain_event(event: early_access.ReleaseEvent) -> dict[str, Any]:
    return {
        "at": iso_or_none(event.at),
        "kind": event.kind,
        "before": event.value_before,
        "after": event.value_after,
        "why": event.why,
        "by": event.actor_name,
    }
