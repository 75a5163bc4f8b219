"""Signing in by OpenID Connect in a browser: redirects and cookies over HTTP, with a provider in its own process."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from musespark.accounts import invitations, organisations
from musespark.accounts.actor import machine
from musespark.api.settings import Settings
from musespark.errors import ConfigError
from tests.accounts.test_oidc import provider, register  # noqa: F401
from tests.api.world import World, running_world

PUBLIC_URL = "https://muse.example"


@pytest.fixture(scope="module")
def signing_in(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:  # noqa: F811
    settings = {"oidc_issuer": provider, "oidc_client_id": "musespark", "oidc_client_secret": "a secret of ours"}
    state_dir = tmp_path_factory.mktemp("oidc") / "state"
    with running_world(state_dir, public_url=PUBLIC_URL, **settings) as world:
        yield world


def test_a_browser_goes_to_the_provider_and_comes_back_signed_in(signing_in: World, provider: str) -> None:  # noqa: F811
    accounts = signing_in.accounts
    acme = organisations.create_organisation(accounts.database, machine(), "Acme").id
    invitations.invite(accounts.database, accounts.pepper, machine(), acme, "ann@acme.example", "owner", None)
    register(provider, "sub-http", email="ann@acme.example", email_verified=True)
    with httpx.Client(base_url=signing_in.url) as browser:
        start = browser.get("/v1/auth/oidc/start")
        assert start.status_code == 303
        state = start.headers["set-cookie"]
        assert all(word in state for word in ("HttpOnly", "SameSite=lax", "Secure", "Path=/v1/auth/oidc"))
        consent = httpx.post(start.headers["location"], data={"sub": "sub-http", "action": "authorize"})
        back = urlsplit(consent.headers["location"])
        assert f"{back.scheme}://{back.netloc}{back.path}" == f"{PUBLIC_URL}/v1/auth/oidc/callback"
        callback = f"{back.path}?{back.query}"
        assert browser.get(callback).status_code == 401  # plain http: a secure cookie stays at home
        cookie = state.split(";")[0]
        with httpx.Client(base_url=signing_in.url, headers={"cookie": cookie}) as secure_browser:
            answer = secure_browser.get(callback)
            assert answer.status_code == 200, answer.text
            assert answer.json()["organisation_id"] == acme
            session = next(c for c in answer.headers.get_list("set-cookie") if c.startswith("musespark_session="))
            assert "Secure" in session
        me = httpx.get(f"{signing_in.url}/v1/auth/session", headers={"cookie": session.split(";")[0]})
        assert me.json()["email"] == "ann@acme.example"


@pytest.mark.parametrize("missing", ["oidc_issuer", "oidc_client_id", "oidc_client_secret", "public_url"])
def test_half_a_configuration_is_an_error_at_the_start(missing: str) -> None:
    whole = {
        "oidc_issuer": "https://idp.example",
        "oidc_client_id": "us",
        "oidc_client_secret": "very private",
        "public_url": PUBLIC_URL,
    }
    assert "very private" not in repr(Settings.read(**whole).oidc_client_secret)
    with pytest.raises(ConfigError, match=f"also needs MUSESPARK_{missing.upper()}") as caught:
        Settings.read(**{name: value for name, value in whole.items() if name != missing})
    assert "very private" not in caught.value.message


@pytest.mark.parametrize(
    "issuer", ["http://idp.example", "ftp://idp.example", "idp.example", "https://", "https://a b"]
)
def test_an_issuer_is_https_or_this_machine(issuer: str) -> None:
    with pytest.raises(ConfigError, match="MUSESPARK_OIDC_ISSUER"):
        Settings.read(oidc_issuer=issuer, oidc_client_id="x", oidc_client_secret="x", public_url=PUBLIC_URL)
