"""The application: the gate, the routes, and nothing that FastAPI would add by itself.

No documentation pages (they load scripts from elsewhere), no redirects, no 422: routes read their bodies themselves.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from musespark.accounts.accounts import Accounts
from musespark.accounts.limits_shared import SharedLimitStore
from musespark.accounts.oidc import Oidc, OidcSettings
from musespark.api.body import BodyReader
from musespark.api.cors import Cors
from musespark.api.deps import Services
from musespark.api.gate import PUBLIC, Gate
from musespark.api.metering import Metering
from musespark.api.metrics import Metrics
from musespark.api.openapi import ERROR_RESPONSES
from musespark.api.routes import (
    admin,
    admin_billing,
    admin_people,
    admin_releases,
    auth,
    chat,
    early_access,
    models,
    operations,
    requests,
    usage,
)
from musespark.api.settings import LOOPBACK_NAMES, Settings
from musespark.providers.base import Provider

ROUTES = (
    chat,
    models,
    usage,
    requests,
    operations,
    auth,
    early_access,
    admin,
    admin_billing,
    admin_people,
    admin_releases,
)


def create_app(provider: Provider | None, accounts: Accounts, settings: Settings) -> FastAPI:
    """`provider` None: the model is still being loaded; set `app.state.services.provider` when it is there."""
    services = Services(
        provider=provider,
        accounts=accounts,
        settings=settings,
        bodies=BodyReader(settings.max_body_bytes, settings.body_timeout_s),
        metrics=Metrics(lambda: _numbers(services)),
        metering=Metering(accounts, SharedLimitStore(accounts.database) if settings.shares_limits else None),
        oidc=_oidc(accounts, settings),
    )
    app = FastAPI(title="Muse Spark", openapi_url=None, redirect_slashes=False)
    app.state.services = services
    app.exception_handlers = {HTTPException: _leave_to_gate}  # instead of FastAPI's own
    app.add_middleware(
        Gate,
        accounts=accounts,
        metrics=services.metrics,
        public=PUBLIC | {"/metrics"} if settings.open_metrics else PUBLIC,
        allowed_hosts=LOOPBACK_NAMES | set(settings.allowed_hosts) if settings.on_loopback else None,
        cors_origins=frozenset(settings.cors_origins),
    )
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins)
    for module in ROUTES:
        app.include_router(module.router, responses=ERROR_RESPONSES)
    return app


def _numbers(services: Services) -> dict[str, float]:
    """What /metrics shows of the engine, once there is one, and of the ledger."""
    health = services.accounts.ledger.health()
    ledger = {
        "ledger_database_away": float(health.database == "away"),
        "ledger_journal_pending_bytes": float(health.journal_pending),
    }
    return ledger | dict(services.provider.metrics() if services.provider else {})


def _oidc(accounts: Accounts, settings: Settings) -> Oidc | None:
    if settings.oidc_issuer is None or settings.oidc_client_id is None or settings.oidc_client_secret is None:
        return None  # the settings have seen to it that there are all or none
    provider = OidcSettings(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret.get_secret_value(),
        redirect_uri=f"{settings.public_url}/v1/auth/oidc/callback",
    )
    return Oidc(provider, accounts.database, accounts.pepper, accounts.sessions)


def _leave_to_gate(_request: Request, error: Exception) -> Response:
    raise error
