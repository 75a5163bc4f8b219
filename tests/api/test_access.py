"""Who may come in: every route, every spelling of a path, every way to get the key wrong."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from starlette.routing import BaseRoute, Route

from musespark.accounts.secret import new_secret
from musespark.api.access import PUBLIC, RULES
from musespark.api.app import create_app
from musespark.api.settings import Settings
from tests.api.world import World, asking, exchange, running_world

OIDC = ("/v1/auth/oidc/start", "/v1/auth/oidc/callback")  # not set up in this world
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW")


def routes_of(world: World) -> list[Route]:
    return flat(create_app(None, world.accounts, world.settings).routes)


def flat(routes: Sequence[BaseRoute]) -> list[Route]:
    """The routes of included routers too, which newer versions of FastAPI keep as they are."""
    found: list[Route] = []
    for route in routes:
        assert isinstance(route, Route) or hasattr(route, "original_router"), f"unknown kind of route: {route!r}"
        found += [route] if isinstance(route, Route) else flat(route.original_router.routes)
    return found


def test_every_route_has_its_rule_and_every_rule_its_route(world: World) -> None:
    """A route without a rule would be out of reach, a rule without a route a hole that waits for one."""
    routes = {(method, route.path) for route in routes_of(world) for method in route.methods or ()}
    assert routes == {(rule.method, rule.path) for rule in RULES}


def test_what_is_open_to_the_world_is_the_list_that_these_tests_know() -> None:
    assert {(rule.method, rule.path) for rule in RULES if rule.permission is None} == {
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/v1/status"),
        ("POST", "/v1/auth/sign-in"),
        ("POST", "/v1/auth/invitation"),
        ("GET", "/v1/auth/oidc/start"),
        ("GET", "/v1/auth/oidc/callback"),
    }


def test_every_route_and_method_is_refused_without_a_key_unless_it_is_public(world: World) -> None:
    with httpx.Client(base_url=world.url) as stranger:
        for route in routes_of(world):
            path = re.sub(r"{.*?}", "talking", route.path)
            for method in METHODS:
                response = stranger.request(method, path)
                public = path in PUBLIC
                allowed = public and method in (route.methods or ())
                known = {"/v1/auth/sign-in": 400, "/v1/auth/invitation": 400} | dict.fromkeys(OIDC, 404)
                expected = known.get(path, 200) if allowed else 405 if public else 401
                assert response.status_code == expected, (method, path)


def test_no_route_is_public_by_its_own_account(world: World) -> None:
    """A new route must be refused without a key before anybody thinks of it: that is what denying by default means."""
    app = create_app(world.provider, world.accounts, world.settings)
    app.add_api_route("/new", lambda: "hello")
    assert "/new" in {route.path for route in flat(app.routes)}

    async def ask() -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/new")).status_code

    assert asyncio.run(ask()) == 401


@pytest.mark.parametrize(
    "target",
    [
        "/healthz/../v1/models",
        "/healthz/%2e%2e/v1/models",
        "/v1/models?/healthz",
        "/v1/models#/healthz",
        "//v1/models",
        "/V1/MODELS",
        "/v1/models/",
        "/healthz;/../v1/models",
        "/healthz%2f..%2fv1%2fmodels",
        "/healthz%00/v1/models",
        "/v1/models/%00",
        "/healthz/",
        "//healthz",
        "/%68ealthz/x",
        "http://127.0.0.1/v1/models",
        "http://healthz/healthz/v1/models",
        "*",
        "127.0.0.1:80",
    ],
)
def test_no_spelling_of_a_path_gets_around_the_key(world: World, target: str) -> None:
    assert raw_request(world, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith("HTTP/1.1 401")


def test_connect_is_refused_like_everything_else(world: World) -> None:
    answer = raw_request(world, "CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith("HTTP/1.1 401")


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Basic dXNlcjpwYXNz",
        "Bearer null",
        "Bearer sk-muse-",
        "Bearer " + "a" * 5000,
        "Bearer sk-muse-" + "0" * 49,
        "Token {key}",
        "{key}",
        "Bearer {key}x",
        "Bearer {key} {key}",
        "Bearer,{key}",
    ],
)
def test_a_wrong_authorization_is_refused(world: World, authorization: str) -> None:
    header = {"authorization": authorization.format(key=world.key)}
    response = httpx.get(f"{world.url}/v1/models", headers=header)
    assert response.status_code == 401
    assert response.json()["error"]["code"] in ("invalid_api_key", "malformed_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert world.key not in response.text


def test_a_forged_key_is_refused(world: World) -> None:
    response = httpx.get(f"{world.url}/v1/models", headers={"authorization": f"Bearer {new_secret()}"})
    assert response.json()["error"]["code"] == "invalid_api_key"


def test_the_scheme_may_be_written_in_any_case(world: World) -> None:
    assert httpx.get(f"{world.url}/v1/models", headers={"authorization": f"bEARER {world.key}"}).status_code == 200


def test_two_authorizations_are_refused(world: World) -> None:
    head = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {world.key}\r\n"
    assert raw_request(world, f"{head}Authorization: Bearer x\r\n\r\n").startswith("HTTP/1.1 401")
    assert raw_request(world, f"{head}\r\n").startswith("HTTP/1.1 200")


def test_a_revoked_key_is_refused_at_once(world: World) -> None:
    new = world.accounts.create_key("short-lived")
    headers = {"authorization": f"Bearer {new.secret}"}
    assert httpx.get(f"{world.url}/v1/models", headers=headers).status_code == 200
    world.accounts.revoke_key(new.key.id)
    response = httpx.get(f"{world.url}/v1/models", headers=headers)
    assert response.status_code == 401
    assert "was revoked" in response.json()["error"]["message"]


def test_the_body_of_a_stranger_is_not_read(world: World) -> None:
    """The answer comes although the announced body never does."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
    assert raw_request(world, f"{head}Content-Type: application/json\r\n\r\n").startswith("HTTP/1.1 401")
    assert raw_request(world, f"{head}Expect: 100-continue\r\n\r\n").startswith("HTTP/1.1 401")


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1", "LOCALHOST", "[::1]:8000"])
def test_names_of_this_machine_are_accepted(world: World, host: str) -> None:
    assert world.client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "127.0.0.2"]
)
def test_a_foreign_host_is_refused_on_loopback(world: World, host: str) -> None:
    for path in ("/v1/models", "/healthz"):
        response = world.client.get(path, headers={"host": host})
        assert response.status_code == 403
        assert "MUSESPARK_ALLOWED_HOSTS" in response.json()["error"]["message"]


def test_http_1_0_may_leave_the_host_out(world: World) -> None:
    head = f"GET /v1/models HTTP/1.0\r\nAuthorization: Bearer {world.key}\r\n"
    assert raw_request(world, f"{head}\r\n").startswith("HTTP/1.1 200")
    assert raw_request(world, f"{head}Host: evil.example\r\n\r\n").startswith("HTTP/1.1 403")
    assert raw_request(world, f"{head}Origin: https://evil.example\r\n\r\n").startswith("HTTP/1.1 403")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1"])
def test_pages_of_other_origins_are_refused_on_loopback(world: World, origin: str) -> None:
    response = world.client.post("/v1/chat/completions", json=asking("hi"), headers={"origin": origin})
    assert response.status_code == 403
    error = response.json()["error"]
    assert error["code"] == "permission_denied"
    assert "ALLOWED_HOSTS" not in error["message"]  # without CORS a browser would not read the answer either


def test_our_own_pages_may_call(world: World) -> None:
    headers = {"origin": f"http://127.0.0.1:{world.port}"}
    assert world.client.get("/v1/models", headers=headers).status_code == 200


@pytest.fixture(scope="module")
def opened_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server whose operator has allowed a name and opened the metrics."""
    state_dir: Path = tmp_path_factory.mktemp("opened") / "state"
    with running_world(state_dir, allowed_hosts="muse.example, other.example", open_metrics=True) as world:
        yield world


def test_the_operator_can_allow_names_and_their_pages(opened_world: World) -> None:
    headers = {"host": "muse.example", "origin": "https://other.example"}
    assert opened_world.client.get("/v1/models", headers=headers).status_code == 200
    assert opened_world.client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403


def test_the_operator_can_open_the_metrics(opened_world: World) -> None:
    assert httpx.get(f"{opened_world.url}/metrics").status_code == 200
    assert httpx.get(f"{opened_world.url}/v1/models").status_code == 401


def test_off_loopback_any_name_is_let_through(world: World, tmp_path: Path) -> None:
    assert not Settings(host="0.0.0.0", state_dir=tmp_path).on_loopback
    assert not Settings(host="muse.example", state_dir=tmp_path).on_loopback
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert Settings(host=host, state_dir=tmp_path).on_loopback


def raw_request(world: World, text: str) -> str:
    return exchange(world.port, text.encode("latin-1")).decode("latin-1")
