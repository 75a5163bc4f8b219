"""People sign in and out: by password, by OpenID Connect, or with an invitation.

A session is a cookie that no script can read. What changes something also needs the header x-csrf-token; the gate
checks it. The routes to sign in with need no key, and failed attempts are counted.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import RedirectResponse, Response

from musespark.accounts.sessions import NewSession
from musespark.api import cookies
from musespark.api.admin_body import Body, address_of, answer, identity_of, read_body, takes
from musespark.api.deps import services_of
from musespark.errors import NotFound, PermissionDenied

router = APIRouter(tags=["sign-in"])


class PasswordBody(Body):
    email: str = Field(max_length=320)
    password: str = Field(max_length=256)


class InvitationBody(Body):
    token: str = Field(max_length=200)
    name: str = Field(max_length=200)
    password: str = Field(max_length=256)


class PlaceBody(Body):
    organisation_id: str = Field(max_length=64)


@router.post("/v1/auth/sign-in", openapi_extra=takes(PasswordBody))
async def sign_in(request: Request) -> Response:
    """A session for an email and a password. Too many failures are a 429."""
    body = await read_body(request, PasswordBody)
    accounts = services_of(request).accounts
    session = await asyncio.to_thread(accounts.sign_in.with_password, body.email, body.password, address_of(request))
    return _begun(request, session)


@router.post("/v1/auth/invitation", openapi_extra=takes(InvitationBody))
async def accept_invitation(request: Request) -> Response:
    """Join an organisation: choose a name and a password, or give the password of an account that exists."""
    body = await read_body(request, InvitationBody)
    accounts = services_of(request).accounts
    session = await asyncio.to_thread(
        accounts.sign_in.accept_invitation, body.token, body.name, body.password, address_of(request)
    )
    return _begun(request, session)


@router.get("/v1/auth/oidc/start")
async def start_oidc(request: Request) -> Response:
    """Sends the browser to the provider."""
    services = services_of(request)
    if services.oidc is None:
        raise NotFound("signing in by OpenID Connect is not set up here; the operator can, see docs/accounts.md")
    redirect = await asyncio.to_thread(services.oidc.start)
    response = RedirectResponse(redirect.url, status_code=303, headers={"cache-control": "no-store"})
    cookies.set_state(response, redirect.state, services.settings)
    return response


@router.get("/v1/auth/oidc/callback")
async def finish_oidc(request: Request) -> Response:
    """Where the provider sends the browser back to, with a code."""
    services = services_of(request)
    if services.oidc is None:
        raise NotFound("signing in by OpenID Connect is not set up here")
    parameters = dict(request.query_params)
    session = await asyncio.to_thread(
        services.oidc.finish, parameters, cookies.state_cookie(request.headers), address_of(request)
    )
    response = _begun(request, session)
    cookies.clear(response, cookies.STATE, services.settings)
    return response


@router.get("/v1/auth/session")
async def get_session(request: Request) -> Response:
    """Who is signed in, where they may work, and the CSRF token that changes need."""
    identity, accounts = identity_of(request), services_of(request).accounts
    token = cookies.session_cookie(request.headers)
    if identity.kind != "person" or token is None or identity.person_id is None:
        raise PermissionDenied("this is about people who are signed in; a key has no session")
    places = await asyncio.to_thread(accounts.sessions.places, identity.person_id)
    return answer(
        {
            "person_id": identity.person_id,
            "email": identity.name,
            "organisation_id": identity.organisation_id,
            "permissions": sorted(identity.permissions),
            "organisations": [
                {"organisation_id": place.organisation_id, "name": place.name, "role": place.role} for place in places
            ],
            "csrf_token": accounts.sessions.csrf_token(token),
        }
    )


@router.post("/v1/auth/session", openapi_extra=takes(PlaceBody))
async def switch_organisation(request: Request) -> Response:
    """Work in another organisation of one's own from now on."""
    body, identity = await read_body(request, PlaceBody), identity_of(request)
    if identity.person_id is None:
        raise PermissionDenied("a key belongs to one organisation for good")
    sessions = services_of(request).accounts.sessions
    await asyncio.to_thread(sessions.switch, identity.key_id, identity.person_id, body.organisation_id)
    return answer({"organisation_id": body.organisation_id})


@router.post("/v1/auth/sign-out")
async def sign_out(request: Request) -> Response:
    identity, services = identity_of(request), services_of(request)
    if identity.kind == "person":
        await asyncio.to_thread(services.accounts.sessions.end, identity.key_id)
    response = answer({"signed_out": True})
    cookies.clear(response, cookies.SESSION, services.settings)
    return response


def _begun(request: Request, session: NewSession) -> Response:
    shown: dict[str, Any] = {
        "person_id": session.person_id,
        "organisation_id": session.organisation_id,
        "expires_at": session.expires_at,
        "csrf_token": session.csrf_token,
    }
    response = answer(shown)
    cookies.set_session(response, session, services_of(request).settings)
    return response
