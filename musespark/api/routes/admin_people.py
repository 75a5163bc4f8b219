"""The administrative API: people of an organisation, their roles, and invitations."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from musespark.accounts import invitations, people
from musespark.api.admin_body import Body, actor_of, answer, identity_of, in_reach, read_body, takes
from musespark.api.deps import services_of

router = APIRouter(prefix="/v1/admin/organisations/{organisation_id}", tags=["admin"])


class InviteBody(Body):
    email: str = Field(max_length=320)
    role: str = Field(max_length=40)


class RoleBody(Body):
    role: str = Field(max_length=40)


@router.get("/people")
async def list_people(request: Request, organisation_id: str) -> Response:
    database, reached = services_of(request).accounts.database, in_reach(request, organisation_id)
    return answer(await asyncio.to_thread(people.list_members, database, reached))


@router.patch("/people/{person_id}", openapi_extra=takes(RoleBody))
async def change_role(request: Request, organisation_id: str, person_id: str) -> Response:
    """Nobody can give, or take away, a role that can do more than they can."""
    reached, body, actor = in_reach(request, organisation_id), await read_body(request, RoleBody), actor_of(request)
    database, held = services_of(request).accounts.database, identity_of(request).permissions
    return answer(await asyncio.to_thread(people.change_role, database, actor, reached, person_id, body.role, held))


@router.delete("/people/{person_id}")
async def remove_person(request: Request, organisation_id: str, person_id: str) -> Response:
    """Take somebody out of the organisation; their sessions there end."""
    reached, actor = in_reach(request, organisation_id), actor_of(request)
    database, held = services_of(request).accounts.database, identity_of(request).permissions
    await asyncio.to_thread(people.remove_member, database, actor, reached, person_id, held)
    return answer({"id": person_id, "removed": True})


@router.get("/invitations")
async def list_invitations(request: Request, organisation_id: str) -> Response:
    database, reached = services_of(request).accounts.database, in_reach(request, organisation_id)
    return answer(await asyncio.to_thread(invitations.list_invitations, database, reached))


@router.post("/invitations", openapi_extra=takes(InviteBody), status_code=201)
async def invite(request: Request, organisation_id: str) -> Response:
    """Invite somebody. `token` is in this answer and never again: send it to them; it is good for a week."""
    reached, body, actor = in_reach(request, organisation_id), await read_body(request, InviteBody), actor_of(request)
    accounts, held = services_of(request).accounts, identity_of(request).permissions
    new = await asyncio.to_thread(
        invitations.invite, accounts.database, accounts.pepper, actor, reached, body.email, body.role, held
    )
    return answer({**asdict(new.invitation), "token": new.token}, 201)


@router.delete("/invitations/{invitation_id}")
async def revoke_invitation(request: Request, organisation_id: str, invitation_id: str) -> Response:
    reached, actor = in_reach(request, organisation_id), actor_of(request)
    database = services_of(request).accounts.database
    await asyncio.to_thread(invitations.revoke_invitation, database, actor, reached, invitation_id)
    return answer({"id": invitation_id, "revoked": True})
