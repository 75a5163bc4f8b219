"""Signing in by OpenID Connect: at a provider in a process of its own, and with tokens that are wrong in one way."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import sqlalchemy as sa
from joserfc import jwt
from joserfc.jwk import KeySet, OctKey, RSAKey

from musespark.accounts import invitations, organisations, people, tables
from musespark.accounts import oidc as module
from musespark.accounts.accounts import Accounts
from musespark.accounts.actor import machine
from musespark.accounts.oidc import Oidc, OidcSettings
from musespark.errors import SetupError, SignInFailed, TooManySignIns

CALLBACK = "https://muse.example/v1/auth/oidc/callback"
HERE = "192.0.2.7"


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """oidc-provider-mock, listening; its issuer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "oidc_provider_mock",
        "--port",
        str(port),
        "--require-nonce",
        "true",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    issuer = f"http://localhost:{port}"
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{issuer}/.well-known/openid-configuration")
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the provider did not start"
                time.sleep(0.1)
        yield issuer
    finally:
        process.kill()  # it has nothing to finish, and would take seconds
        process.wait(timeout=30)


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    with Accounts.open(tmp_path / "state") as opened:
        yield opened


@pytest.fixture
def organisation(accounts: Accounts) -> str:
    return organisations.create_organisation(accounts.database, machine(), "Acme").id


def oidc(accounts: Accounts, issuer: str) -> Oidc:
    settings = OidcSettings(issuer, "musespark", "a secret of ours", CALLBACK)
    return Oidc(settings, accounts.database, accounts.pepper, accounts.sessions)


def register(issuer: str, subject: str, **claims: Any) -> None:
    assert httpx.put(f"{issuer}/users/{subject}", json=claims).status_code == 204


def at_the_provider(url: str, subject: str, action: str = "authorize") -> dict[str, str]:
    """What the browser comes back with after `subject` has said yes, or no."""
    answer = httpx.post(url, data={"sub": subject, "action": action})
    assert answer.status_code == 302, answer.text
    assert answer.headers["location"].startswith(CALLBACK)
    return {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["location"]).query).items()}


def invite(accounts: Accounts, organisation: str, email: str) -> None:
    invitations.invite(accounts.database, accounts.pepper, machine(), organisation, email, "developer", None)


def test_somebody_invited_signs_in_and_comes_back(accounts: Accounts, provider: str, organisation: str) -> None:
    register(provider, "sub-ann", email="Ann@Acme.Example", email_verified=True, name="Ann")
    invite(accounts, organisation, "ann@acme.example")
    ours = oidc(accounts, provider)
    sessions = []
    for _ in range(2):
        redirect = ours.start()
        sessions.append(ours.finish(at_the_provider(redirect.url, "sub-ann"), redirect.state, HERE))
    identity = accounts.sessions.verify(sessions[1].token)
    assert (identity.name, identity.organisation_id) == ("ann@acme.example", organisation)
    assert sessions[0].person_id == sessions[1].person_id
    [member] = people.list_members(accounts.database, organisation)
    assert (member.name, member.role) == ("Ann", "developer")


def test_the_redirect_has_state_nonce_and_pkce(accounts: Accounts, provider: str) -> None:
    query = parse_qs(urlsplit(oidc(accounts, provider).start().url).query)
    assert query["response_type"] == ["code"]
    assert query["code_challenge_method"] == ["S256"]  # RFC 7636
    assert len(query["state"][0]) >= 43
    assert len(query["nonce"][0]) >= 43
    assert query["redirect_uri"] == [CALLBACK]
    assert "openid" in query["scope"][0]


def test_an_email_that_is_known_here_is_the_same_person(accounts: Accounts, provider: str, organisation: str) -> None:
    people.add_person(accounts.database, machine(), "bob@acme.example", "Bob", None, operator=False)
    people.add_member(accounts.database, machine(), organisation, "bob@acme.example", "owner")
    register(provider, "sub-bob", email="bob@acme.example", email_verified=True)
    redirect = oidc(accounts, provider).start()
    session = oidc(accounts, provider).finish(at_the_provider(redirect.url, "sub-bob"), redirect.state, HERE)
    assert [member.person_id for member in people.list_members(accounts.database, organisation)] == [session.person_id]


def test_somebody_disabled_stays_out_here_too(accounts: Accounts, provider: str, organisation: str) -> None:
    register(provider, "sub-dan", email="dan@acme.example", email_verified=True)
    invite(accounts, organisation, "dan@acme.example")
    ours = oidc(accounts, provider)
    redirect = ours.start()
    ours.finish(at_the_provider(redirect.url, "sub-dan"), redirect.state, HERE)
    people.set_disabled(accounts.database, machine(), "dan@acme.example", True)
    redirect = ours.start()
    with pytest.raises(SignInFailed, match="disabled"):
        ours.finish(at_the_provider(redirect.url, "sub-dan"), redirect.state, HERE)


@pytest.mark.parametrize(
    ("claims", "problem"),
    [
        ({"email": "eve@acme.example"}, "has not verified your email"),
        ({"email": "eve@acme.example", "email_verified": False}, "has not verified your email"),
        ({"email": "eve@acme.example", "email_verified": "true"}, "has not verified your email"),
        ({"email_verified": True}, "no usable email"),
        ({"email": "stranger@acme.example", "email_verified": True}, "nobody has invited stranger@acme.example"),
    ],
)
def test_who_is_not_vouched_for_or_not_invited_stays_out(
    accounts: Accounts, provider: str, organisation: str, claims: dict[str, Any], problem: str
) -> None:
    invite(accounts, organisation, "eve@acme.example")
    subject = f"sub-{abs(hash(problem + str(claims)))}"
    register(provider, subject, **claims)
    redirect = oidc(accounts, provider).start()
    with pytest.raises(SignInFailed, match=problem):
        oidc(accounts, provider).finish(at_the_provider(redirect.url, subject), redirect.state, HERE)
    assert people.list_members(accounts.database, organisation) == []


def test_a_sign_in_belongs_to_the_browser_that_began_it_and_is_good_once(accounts: Accounts, provider: str) -> None:
    ours = oidc(accounts, provider)
    redirect, another = ours.start(), ours.start()
    back = at_the_provider(redirect.url, "sub-x")
    for cookie in (None, "", another.state):
        with pytest.raises(SignInFailed, match="not started in this browser"):
            ours.finish(back, cookie, HERE)
    with pytest.raises(SignInFailed, match="has not verified"):
        ours.finish(back, redirect.state, HERE)
    with pytest.raises(SignInFailed, match="used already"):
        ours.finish(back, redirect.state, HERE)


def test_a_refusal_at_the_provider_is_told(accounts: Accounts, provider: str) -> None:
    ours = oidc(accounts, provider)
    redirect = ours.start()
    with pytest.raises(SignInFailed, match="the provider refused: 'access_denied'"):
        ours.finish({"error": "access_denied", "state": redirect.state}, redirect.state, HERE)


def test_a_made_up_code_is_refused(accounts: Accounts, provider: str) -> None:
    ours = oidc(accounts, provider)
    redirect = ours.start()
    with pytest.raises(SignInFailed, match="answer is not valid"):
        ours.finish({"code": "made-up", "state": redirect.state}, redirect.state, HERE)


def test_a_sign_in_that_takes_too_long_is_over(accounts: Accounts, provider: str) -> None:
    ours = oidc(accounts, provider)
    redirect = ours.start()
    with accounts.database.write() as connection:
        connection.execute(sa.update(tables.oidc_sign_ins).values(expires_at=int(time.time())))
    with pytest.raises(SignInFailed, match="took too long"):
        ours.finish(at_the_provider(redirect.url, "sub-ann"), redirect.state, HERE)


def test_there_is_a_bound_on_sign_ins_that_were_only_started(
    accounts: Accounts, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ON_THEIR_WAY", 2)
    ours = oidc(accounts, provider)
    for _ in range(2):
        ours.start()
    with pytest.raises(TooManySignIns):
        ours.start()
    with accounts.database.write() as connection:  # ten minutes later
        connection.execute(sa.update(tables.oidc_sign_ins).values(expires_at=int(time.time()) - 1))
    ours.start()


def test_a_provider_that_is_away_or_somebody_else_is_said(accounts: Accounts, provider: str) -> None:
    with pytest.raises(SignInFailed, match="does not answer as one"):
        oidc(accounts, "http://localhost:9").start()
    with pytest.raises(SetupError, match="calls itself"):
        oidc(accounts, provider + "/").start()


# Tokens, by OpenID Connect Core 1.0, section 3.1.3.7. The provider's part is played by a key of ours.

KEY = RSAKey.generate_key(2048, {"kid": "k"})
OTHER = RSAKey.generate_key(2048, {"kid": "k"})


class Scripted(Oidc):
    """The provider's answers, written here: `token` is made by the test from the nonce."""

    def answer_with(self, make_token: Any) -> None:
        self.make_token = make_token

    def _discover(self) -> tuple[dict[str, Any], Any]:
        endpoints = {"authorization_endpoint": "https://idp.example/a", "token_endpoint": "https://idp.example/t"}
        return {"issuer": "https://idp.example", **endpoints}, KeySet([KEY])

    def _client(self) -> Any:
        client = super()._client()
        client.fetch_token = lambda *_, **__: {"id_token": self.make_token()}
        return client


def claims(nonce: str, **changed: Any) -> dict[str, Any]:
    now = int(time.time())
    right = {"iss": "https://idp.example", "aud": "musespark", "sub": "s", "nonce": nonce, "iat": now, "exp": now + 60}
    right |= {"email": "ann@acme.example", "email_verified": True}
    return {name: value for name, value in (right | changed).items() if value is not None}


def unsigned(content: dict[str, Any]) -> str:
    parts = ({"alg": "none"}, content)
    return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts) + "."


def signed(content: dict[str, Any], key: Any = KEY, alg: str = "RS256") -> str:
    return jwt.encode({"alg": alg, "kid": "k"}, content, key)


TOKENS = {
    "right": (lambda nonce: signed(claims(nonce)), True),
    "right, for several and us": (lambda n: signed(claims(n, aud=["musespark", "b"], azp="musespark")), True),
    "another key": (lambda nonce: signed(claims(nonce), OTHER), False),
    "no signature": (lambda nonce: unsigned(claims(nonce)), False),
    "signed with the public key as a secret": (
        lambda nonce: signed(claims(nonce), OctKey.import_key(KEY.as_pem(private=False)), "HS256"),
        False,
    ),
    "another issuer": (lambda nonce: signed(claims(nonce, iss="https://evil.example")), False),
    "another application": (lambda nonce: signed(claims(nonce, aud="other")), False),
    "several, not for us": (lambda nonce: signed(claims(nonce, aud=["musespark", "b"], azp="b")), False),
    "several, for nobody": (lambda nonce: signed(claims(nonce, aud=["musespark", "b"])), False),
    "another nonce": (lambda _: signed(claims("other")), False),
    "no nonce": (lambda nonce: signed(claims(nonce, nonce=None)), False),
    "no subject": (lambda nonce: signed(claims(nonce, sub=None)), False),
    "expired": (lambda nonce: signed(claims(nonce, exp=int(time.time()) - 61)), False),
    "no expiry": (lambda nonce: signed(claims(nonce, exp=None)), False),
    "of the future": (lambda nonce: signed(claims(nonce, iat=int(time.time()) + 3600)), False),
    "garbage": (lambda _: "a.b.c", False),
    "empty": (lambda _: "", False),
}


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
@pytest.mark.parametrize("what", TOKENS)
def test_only_a_token_that_is_right_in_every_way_signs_in(accounts: Accounts, organisation: str, what: str) -> None:
    make, good = TOKENS[what]
    invite(accounts, organisation, "ann@acme.example")
    settings = OidcSettings("https://idp.example", "musespark", "secret", CALLBACK)
    ours = Scripted(settings, accounts.database, accounts.pepper, accounts.sessions)
    redirect = ours.start()
    nonce = parse_qs(urlsplit(redirect.url).query)["nonce"][0]
    ours.answer_with(lambda: make(nonce))
    back = {"code": "c", "state": redirect.state}
    if good:
        assert ours.finish(back, redirect.state, HERE).organisation_id == organisation
    else:
        with pytest.raises(SignInFailed):
            ours.finish(back, redirect.state, HERE)
        assert people.list_members(accounts.database, organisation) == []
