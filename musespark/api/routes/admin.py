"""The administrative API: organisations, projects, service accounts, keys and the audit log.

Under `/v1/admin`, for admin and operator keys and for signed-in people whose role allows it (`api/access.py`). Only an
operator reaches another organisation than its own; for everybody else the others do not exist.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from musespark.accounts import audit, organisations, service_accounts
from musespark.accounts.keys import NewKey
from musespark.api.admin_body import Body, actor_of, answer, identity_of, in_reach, query_int, read_body, takes
from musespark.api.deps import services_of

router = APIRouter(prefix="/v1/admin", tags=["admin"])

Name = Field(max_length=400)  # accounts.names has the exact rule
Id = Field(max_length=64)


class OrganisationBody(Body):
    name: str = Name
    internal: bool = False


class OrganisationChange(Body):
    name: str | None = Field(None, max_length=400)
    suspended: bool | None = None


class ProjectBody(Body):
    name: str = Name


class ProjectChange(Body):
    name: str | None = Field(None, max_length=400)
    archived: bool | None = None


class ServiceAccountBody(Body):
    name: str = Name
    project_id: str = Id


class KeyBody(Body):
    """`models` and `routes` left out are no restriction; `expires_at` is in UTC seconds since 1970."""

    name: str = Name
    project_id: str | None = Field(None, max_length=64)
    service_account_id: str | None = Field(None, max_length=64)
    access: str = Field("standard", max_length=40)
    models: list[str] | None = Field(None, max_length=100)
    routes: list[str] | None = Field(None, max_length=40)
    expires_at: int | None = Field(None, ge=0, le=10**11)


class RotateBody(Body):
    overlap_s: int = 86_400


@router.get("/organisations")
async def list_organisations(request: Request) -> Response:
    database = services_of(request).accounts.database
    return answer(await asyncio.to_thread(organisations.list_organisations, database))


@router.post("/organisations", openapi_extra=takes(OrganisationBody), status_code=201)
async def create_organisation(request: Request) -> Response:
    """A new organisation, with a project "default"."""
    body, actor = await read_body(request, OrganisationBody), actor_of(request)
    database = services_of(request).accounts.database
    made = await asyncio.to_thread(
        organisations.create_organisation, database, actor, body.name, internal=body.internal
    )
    return answer(made, 201)


@router.get("/organisations/{organisation_id}")
async def get_organisation(request: Request, organisation_id: str) -> Response:
    database, reached = services_of(request).accounts.database, in_reach(request, organisation_id)
    return answer(await asyncio.to_thread(organisations.get_organisation, database, reached))


@router.patch("/organisations/{organisation_id}", openapi_extra=takes(OrganisationChange))
async def update_organisation(request: Request, organisation_id: str) -> Response:
    """Rename; an operator may also suspend and resume. None of a suspended organisation's keys works."""
    reached, body, actor = (
        in_reach(request, organisation_id),
        await read_body(request, OrganisationChange),
        actor_of(request),
    )
    if body.suspended is not None:
        identity_of(request).require("organisations.write")
    accounts = services_of(request).accounts
    changed = await asyncio.to_thread(
        organisations.update_organisation,
        accounts.database,
        actor,
        reached,
        name=body.name,
        suspended=body.suspended,
    )
    accounts.forget_keys()
    return answer(changed)


@router.get("/organisations/{organisation_id}/projects")
async def list_projects(request: Request, organisation_id: str) -> Response:
    database, reached = services_of(request).accounts.database, in_reach(request, organisation_id)
    return answer(await asyncio.to_thread(organisations.list_projects, database, reached))


@router.post("/organisations/{organisation_id}/projects", openapi_extra=takes(ProjectBody), status_code=201)
async def create_project(request: Request, organisation_id: str) -> Response:
    reached, body, actor = in_reach(request, organisation_id), await read_body(request, ProjectBody), actor_of(request)
    database = services_of(request).accounts.database
    made = await asyncio.to_thread(organisations.create_project, database, actor, reached, body.name)
    return answer(made, 201)


@router.patch("/organisations/{organisation_id}/projects/{project_id}", openapi_extra=takes(ProjectChange))
async def update_project(request: Request, organisation_id: str, project_id: str) -> Response:
    """Rename, archive, or take back from the archive. None of an archived project's keys works."""
    reached, body, actor = (
        in_reach(request, organisation_id),
        await read_body(request, ProjectChange),
        actor_of(request),
    )
    accounts = services_of(request).accounts
    changed = await asyncio.to_thread(
        organisations.update_project,
        accounts.database,
        actor,
        reached,
        project_id,
        name=body.name,
        archived=body.archived,
    )
    accounts.forget_keys()
    return answer(changed)


@router.get("/organisations/{organisation_id}/service-accounts")
async def list_service_accounts(request: Request, organisation_id: str) -> Response:
    database, reached = services_of(request).accounts.database, in_reach(request, organisation_id)
    return answer(await asyncio.to_thread(service_accounts.list_service_accounts, database, reached))


@router.post(
    "/organisations/{organisation_id}/service-accounts", openapi_extra=takes(ServiceAccountBody), status_code=201
)
async def create_service_account(request: Request, organisation_id: str) -> Response:
    """An owner of keys that is not a person."""
    reached, actor = in_reach(request, organisation_id), actor_of(request)
    body = await read_body(request, ServiceAccountBody)
    database = services_of(request).accounts.database
    made = await asyncio.to_thread(
        service_accounts.create_service_account, database, actor, reached, body.project_id, body.name
    )
    return answer(made, 201)


@router.delete("/organisations/{organisation_id}/service-accounts/{account_id}")
async def disable_service_account(request: Request, organisation_id: str, account_id: str) -> Response:
    """End all of its keys, for good."""
    reached, actor, accounts = in_reach(request, organisation_id), actor_of(request), services_of(request).accounts
    gone = await asyncio.to_thread(
        service_accounts.disable_service_account, accounts.database, actor, reached, account_id
    )
    accounts.forget_keys()
    return answer(gone)


@router.get("/organisations/{organisation_id}/keys")
async def list_keys(request: Request, organisation_id: str) -> Response:
    """Every key ever made there, without its secret; `project_id` in the query picks one project."""
    accounts, reached = services_of(request).accounts, in_reach(request, organisation_id)
    return answer(await asyncio.to_thread(accounts.list_keys, reached, request.query_params.get("project_id")))


@router.post("/organisations/{organisation_id}/keys", openapi_extra=takes(KeyBody), status_code=201)
async def create_key(request: Request, organisation_id: str) -> Response:
    """A new key. `secret` is in this answer and never again."""
    reached, body, actor = in_reach(request, organisation_id), await read_body(request, KeyBody), actor_of(request)
    held = identity_of(request).permissions
    options: dict[str, Any] = body.model_dump(exclude={"name"})
    new = await asyncio.to_thread(
        lambda: services_of(request).accounts.create_key(
            body.name, by=actor, held=held, organisation_id=reached, **options
        )
    )
    return answer(_shown_once(new), 201)


@router.post("/organisations/{organisation_id}/keys/{key_id}/rotate", openapi_extra=takes(RotateBody), status_code=201)
async def rotate_key(request: Request, organisation_id: str, key_id: str) -> Response:
    """A new key like the old one, which ends after `overlap_s` seconds."""
    reached, body, actor = in_reach(request, organisation_id), await read_body(request, RotateBody), actor_of(request)
    held = identity_of(request).permissions
    new = await asyncio.to_thread(
        lambda: services_of(request).accounts.rotate_key(
            key_id, overlap_s=body.overlap_s, by=actor, organisation_id=reached, held=held
        )
    )
    return answer(_shown_once(new), 201)


@router.delete("/organisations/{organisation_id}/keys/{key_id}")
async def revoke_key(request: Request, organisation_id: str, key_id: str) -> Response:
    """End a key for good: here at once, on every other replica within a second."""
    reached, actor, accounts = in_reach(request, organisation_id), actor_of(request), services_of(request).accounts
    gone = await asyncio.to_thread(lambda: accounts.revoke_key(key_id, by=actor, organisation_id=reached))
    return answer(gone)


@router.get("/organisations/{organisation_id}/audit")
async def organisation_audit(request: Request, organisation_id: str) -> Response:
    """Administrative acts in this organisation, newest first; `before_id`, `action` and `limit` in the query."""
    return await _audit(request, in_reach(request, organisation_id))


@router.get("/audit")
async def server_audit(request: Request) -> Response:
    """Administrative acts everywhere."""
    return await _audit(request, None)


async def _audit(request: Request, organisation_id: str | None) -> Response:
    limit, before_id = query_int(request, "limit", 100), query_int(request, "before_id", None)
    assert limit is not None
    events = await asyncio.to_thread(
        audit.list_events,
        services_of(request).accounts.database,
        organisation_id=organisation_id,
        action=request.query_params.get("action"),
        before_id=before_id,
        limit=limit,
    )
    return answer(events)


def _shown_once(new: NewKey) -> dict[str, Any]:
    return {**asdict(new.key), "secret": new.secret}
