"""What the world and customers see of releases: the public calendar, and the line for early access."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from musespark.accounts import early_access
from musespark.accounts.release_stages import iso_or_none
from musespark.api.admin_body import Body, actor_of, answer, identity_of, read_body, takes
from musespark.api.deps import Services, services_of

router = APIRouter(tags=["releases"])


class ApplyBody(Body):
    """`note`: what it is for, for those who choose."""

    note: str = Field("", max_length=2000)


@router.get("/v1/status")
async def status(request: Request) -> Response:
    """The calendar of releases, for everybody: stages, launch dates and how they slipped, shutdown dates. No key."""
    services, now = services_of(request), time.time()
    catalogue = await asyncio.to_thread(services.accounts.releases.current)
    slips = await asyncio.to_thread(early_access.slips, services.accounts.database)
    models = []
    for item in catalogue.calendar(_served(services), now):
        shown = {"id": item.id, **item.as_object(), "overdue": item.release.overdue_at(now)}
        del shown["admitted"]  # that is about a caller
        shown["slips"] = [
            {"at": iso_or_none(slip.at), "from": slip.value_before, "to": slip.value_after, "why": slip.why}
            for slip in slips.get(item.release.name, ())
        ]
        models.append(shown)
    ready = services.provider is not None and services.provider.ready
    return answer({"object": "status", "status": "ready" if ready else "starting", "models": models})


@router.post("/v1/releases/{name}/early-access", openapi_extra=takes(ApplyBody), status_code=201)
async def apply(request: Request, name: str) -> Response:
    """Join the line for a release that is to come; again keeps the first place."""
    body, identity, actor = await read_body(request, ApplyBody), identity_of(request), actor_of(request)
    release = await _known(request, name)
    database = services_of(request).accounts.database
    applied = await asyncio.to_thread(early_access.apply, database, actor, release, identity.organisation_id, body.note)
    return answer(_shown(applied), 201)


@router.get("/v1/releases/{name}/early-access")
async def place(request: Request, name: str) -> Response:
    """Whether the organisation is let in, and else its place in the line."""
    release, identity = await _known(request, name), identity_of(request)
    database = services_of(request).accounts.database
    found = await asyncio.to_thread(early_access.application, database, release, identity.organisation_id)
    return answer(_shown(found))


async def _known(request: Request, name: str) -> str:
    """The release behind a name that this caller may know of. Raises ModelNotFound."""
    services = services_of(request)
    catalogue = await asyncio.to_thread(services.accounts.releases.current)
    return catalogue.find(identity_of(request), name, _served(services), time.time()).snapshot


def _served(services: Services) -> frozenset[str]:
    return frozenset() if services.provider is None else frozenset({services.provider.model.id})


def _shown(application: early_access.Application) -> dict[str, Any]:
    shown = asdict(application)
    return {**shown, "applied_at": iso_or_none(application.applied_at)}
