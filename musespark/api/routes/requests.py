"""GET /v1/requests/{id}: what a request used and what it cost, line by line, also if its client has left."""

from __future__ import annotations

import asyncio

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from musespark.api.deps import services_of
from musespark.errors import NotFound

router = APIRouter()


@router.get("/v1/requests/{request_id}")
async def explain_request(request: Request, request_id: str) -> Response:
    """The id is that of the answer's `x-request-id`. A request of another organisation is one that does not exist."""
    ledger = services_of(request).accounts.ledger
    unknown = NotFound(f"there is no request {request_id[:80]!r}; its id is in the answer's x-request-id header")
    try:
        attempts = await asyncio.to_thread(ledger.explain, request_id)
    except NotFound:
        raise unknown from None
    if {attempt["organisation_id"] for attempt in attempts} != {request.state.identity.organisation_id}:
        raise unknown
    body = {"object": "request", "id": request_id, "attempts": attempts}
    return Response(orjson.dumps(body), media_type="application/json")
