"""GET /v1/models and /v1/models/{id}: which names `model` may have."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from musespark.api.deps import provider_of
from musespark.errors import ModelNotFound
from musespark.providers.base import ModelInfo

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    return _json({"object": "list", "data": [_model_object(provider_of(request).model)]})


@router.get("/v1/models/{model_id}")
async def retrieve_model(request: Request, model_id: str) -> Response:
    model = provider_of(request).model
    if model_id != model.id:
        raise ModelNotFound(f"there is no model {model_id[:100]!r}; this server has {model.id!r}", param="model")
    return _json(_model_object(model))


def _model_object(model: ModelInfo) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": model.created, "owned_by": model.owned_by}


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
