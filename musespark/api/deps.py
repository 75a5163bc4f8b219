"""What the routes need from the application around them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.requests import Request

from musespark.accounts.accounts import Accounts
from musespark.accounts.oidc import Oidc
from musespark.api.body import BodyReader
from musespark.api.metering import Metering
from musespark.api.metrics import Metrics
from musespark.api.settings import Settings
from musespark.errors import ModelLoading
from musespark.providers.base import Provider

LARGE_AT_ONCE = 2


@dataclass(slots=True)
class Services:
    """In `app.state.services`. `provider` is None while the model is being loaded.

    `large_bodies` are parsed a few at a time, since each may take eight times its size meanwhile.
    """

    provider: Provider | None
    accounts: Accounts
    settings: Settings
    bodies: BodyReader
    metrics: Metrics
    metering: Metering
    oidc: Oidc | None
    large_bodies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LARGE_AT_ONCE))


def services_of(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


def provider_of(request: Request) -> Provider:
    """Raises ModelLoading before the model is there."""
    provider = services_of(request).provider
    if provider is None:
        raise ModelLoading("the model is still being loaded; try again in a moment", retry_after_ms=500)
    return provider
