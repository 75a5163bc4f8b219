"""GET /v1/models and /v1/models/{id}: which names `model` may have, their releases, prices and data policies."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from musespark.accounts.releases import Listed
from musespark.api.deps import provider_of, services_of
from musespark.errors import PlanRefused
from musespark.providers.base import ModelInfo

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    return _json({"object": "list", "data": await asyncio.to_thread(_visible, request)})


@router.get("/v1/models/{model_id}")
async def retrieve_model(request: Request, model_id: str) -> Response:
    return _json(await asyncio.to_thread(_find, request, model_id))


def _visible(request: Request) -> list[dict[str, Any]]:
    model, catalogue = provider_of(request).model, services_of(request).accounts.releases.current()
    listed = catalogue.visible(request.state.identity, (model.id,), time.time())
    return [_model_object(request, model, one) for one in listed]


def _find(request: Request, model_id: str) -> dict[str, Any]:
    model, catalogue = provider_of(request).model, services_of(request).accounts.releases.current()
    return _model_object(request, model, catalogue.find(request.state.identity, model_id, (model.id,), time.time()))


def _model_object(request: Request, model: ModelInfo, listed: Listed) -> dict[str, Any]:
    """OpenAI's four fields and ours. What another machine serves is described as far as the release says it."""
    result = {"id": listed.id, "object": "model", "created": model.created, "owned_by": model.owned_by}
    if listed.release.model == model.id:
        modalities = {"input": ["text", "image"] if model.reads_images else ["text"], "output": ["text"]}
        result |= {"context": model.context_length, "max_output": model.context_length - 1, "modalities": modalities}
    ledger, organisation_id = services_of(request).accounts.ledger, request.state.identity.organisation_id
    try:
        prices = ledger.price(listed.snapshot, organisation_id=organisation_id).as_units()
    except PlanRefused:  # not in this organisation's currency
        prices = []
    return {**result, **listed.as_object(), "prices": prices}


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
