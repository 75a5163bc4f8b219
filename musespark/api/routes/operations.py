"""For those who run the server: is it alive, is it ready, how is it doing, what does it offer."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from musespark.api.deps import provider_of, services_of
from musespark.api.metrics import CONTENT_TYPE
from musespark.api.openapi import document
from musespark.errors import EngineStopped, LedgerUnavailable, ShuttingDown

router = APIRouter()

JOURNAL_RETRY_MS = 2000


@router.get("/healthz")
async def healthz() -> Response:
    """200 as long as the process answers; restart it when it does not."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """200 when requests will be answered: the model is loaded and the engine runs. 503 otherwise.

    While the ledger's database is away it says so. The server is still ready then: what was admitted goes on, and a
    plan may let in more; it is not any more when the journal that remembers their usage is full.
    """
    provider = provider_of(request)
    if provider.failed:
        raise EngineStopped("the engine has failed, and the log says why; restart the server")
    if not provider.ready:
        raise ShuttingDown("the server is shutting down and takes no more requests")
    health = services_of(request).accounts.ledger.health()
    if not health.accepting:
        message = (
            f"the database is away, and {health.journal_pending:,} bytes of usage wait for it: the journal is full"
        )
        raise LedgerUnavailable(message, retry_after_ms=JOURNAL_RETRY_MS)
    body: dict[str, object] = {"status": "ready", "database": health.database}
    if health.database == "away" or health.journal_pending:
        body |= {"database_since": int(health.since), "journal_pending_bytes": health.journal_pending}
    return Response(orjson.dumps(body), media_type="application/json")


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    return Response(orjson.dumps(document(request.app)), media_type="application/json")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus text. Needs a key, unless MUSESPARK_OPEN_METRICS is set."""
    return Response(services_of(request).metrics.text(), headers={"content-type": CONTENT_TYPE})
