"""Web pages of other origins: kept out by default, let in by name, and then with errors that they can read."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.api.world import World, asking, running_world

APP = "https://app.example"
ASKING = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type,x-own"}


@pytest.fixture(scope="module")
def open_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server whose operator lets the pages of two origins in."""
    state_dir = tmp_path_factory.mktemp("open") / "state"
    with running_world(state_dir, cors_origins=f"{APP},http://localhost:3000") as world:
        yield world


def preflight(world: World, origin: str, **changes: str) -> httpx.Response:
    """What a browser sends before the request itself: no key."""
    headers = {"origin": origin} | ASKING | changes
    return httpx.options(f"{world.url}/v1/chat/completions", headers=headers)


def test_without_the_setting_no_page_is_let_in(world: World) -> None:
    for origin in (APP, "http://localhost:3000", f"http://127.0.0.1:{world.port}"):
        response = preflight(world, origin)
        assert response.status_code in (401, 403)
        assert not [name for name in response.headers if name.startswith("access-control")]
    own = world.client.get("/v1/models", headers={"origin": f"http://127.0.0.1:{world.port}"})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers


@pytest.mark.parametrize("origin", [APP, "http://localhost:3000"])
def test_a_page_that_is_named_may_ask_and_read_the_answer(open_world: World, origin: str) -> None:
    response = preflight(open_world, origin)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == origin
    assert "POST" in response.headers["access-control-allow-methods"]
    assert set(ASKING["access-control-request-headers"].split(",")) <= {
        name.strip().lower() for name in response.headers["access-control-allow-headers"].split(",")
    }
    answer = open_world.post(asking("say: hello", stream=True), origin=origin)
    assert "[DONE]" in answer.text
    assert answer.headers["access-control-allow-origin"] == origin
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert "origin" in answer.headers["vary"].lower()
    assert "access-control-allow-credentials" not in answer.headers


def test_a_page_that_is_named_needs_a_key_and_can_read_that_it_does(open_world: World) -> None:
    response = httpx.get(f"{open_world.url}/v1/models", headers={"origin": APP})
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == APP


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{APP}.evil.example", "http://app.example"])
def test_other_pages_are_still_kept_out(open_world: World, origin: str) -> None:
    refusal = preflight(open_world, origin)
    assert refusal.status_code == 403
    assert refusal.json()["error"]["code"] == "permission_denied"
    answer = open_world.post(asking("say: hello"), origin=origin)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in {**refusal.headers, **answer.headers}


def test_a_method_that_the_api_does_not_have_is_refused(open_world: World) -> None:
    refusal = preflight(open_world, APP, **{"access-control-request-method": "DELETE"})
    assert refusal.status_code == 403
    assert "DELETE" in refusal.json()["error"]["message"]


def test_whoever_is_no_browser_notices_nothing(open_world: World) -> None:
    assert open_world.ask("say: hello").status_code == 200
    assert httpx.options(f"{open_world.url}/v1/models").status_code == 401
