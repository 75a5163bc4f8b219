"""For those who run the server: is it alive, is it ready, how is it doing, what does it offer."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from musespark.api.deps import provider_of, services_of
from musespark.api.metrics import CONTENT_TYPE
from musespark.api.openapi import document
from musespark.errors import EngineStopped, ShuttingDown

router = APIRouter()


@router.get("/healthz")
async def healthz() -> Response:
    """200 as long as the process answers; restart it when it does not."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """200 when requests will be answered: the model is loaded and the engine runs. 503 otherwise."""
    provider = provider_of(request)
    if provider.failed:
        raise EngineStopped("the engine has failed, and the log says why; restart the server")
    if not provider.ready:
        raise ShuttingDown("the server is shutting down and takes no more requests")
    return Response(b'{"status":"ready"}', media_type="application/json")


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    return Response(orjson.dumps(document(request.app)), media_type="application/json")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus text. Needs a key, unless MUSESPARK_OPEN_METRICS is set."""
    return Response(services_of(request).metrics.text(), headers={"content-type": CONTENT_TYPE})
