"""Rate limits as a client sees them: headers, refusals, what counts, and both sides of each limit over HTTP."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from musespark.accounts.limits import NO_LIMITS, Limits, Rate, Standing
from musespark.accounts.limits_config import CACHE_S, set_limits
from musespark.api.rate_headers import duration, rate_headers
from tests.api.world import World, asking, running_world
from tests.training.pack import png

PROMPT = "say: hello"
HEADERS = ("limit", "remaining", "reset")


@pytest.fixture(scope="module", params=["memory", "shared"])
def limited_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server, once with limits counted in its memory and once in the database."""
    state_dir = tmp_path_factory.mktemp("limits") / "state"
    with running_world(state_dir, limits=request.param) as world:
        yield world


class Caller:
    """One key with limits of its own, so that no test sees what another has used."""

    def __init__(self, world: World, **limits: int) -> None:
        self.world = world
        new = world.accounts.create_key("limited")
        self.id = new.key.id
        set_limits(world.accounts.database, new.key.id, Limits(**limits))
        self.headers = {"authorization": f"Bearer {new.secret}"}

    def ask(self, text: str = PROMPT, **fields: object) -> httpx.Response:
        body = asking(text, **fields)
        return httpx.post(f"{self.world.url}/v1/chat/completions", json=body, headers=self.headers, timeout=30)

    @contextmanager
    def counting(self) -> Iterator[httpx.Response]:
        """A stream that has begun, and goes on until the block ends."""
        url = f"{self.world.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=asking("count", stream=True), headers=self.headers) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()  # dropping it would close the stream
            next(lines)
            yield answer


def error_of(response: httpx.Response) -> dict[str, str]:
    return dict(response.json()["error"])


def test_requests_are_counted_and_the_one_too_many_is_told_when_to_come_back(limited_world: World) -> None:
    caller = Caller(limited_world, requests_per_minute=3)
    for left in (2, 1, 0):
        answer = caller.ask()
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
    refused = caller.ask()
    assert refused.status_code == 429
    assert error_of(refused)["code"] == "rate_limit_exceeded"
    assert error_of(refused)["type"] == "rate_limit_error"
    assert f"the key {caller.id} may use 3 requests a minute" in error_of(refused)["message"]
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 15_000 < int(refused.headers["retry-after-ms"]) <= 20_000
    assert refused.headers["retry-after"] == str(-(-int(refused.headers["retry-after-ms"]) // 1000))


def test_without_limits_there_are_no_headers_of_limits(limited_world: World) -> None:
    answer = Caller(limited_world).ask()
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_count_as_the_usage_says_when_the_answer_has_ended(limited_world: World, stream: bool) -> None:
    usage = Caller(limited_world).ask().json()["usage"]
    caller = Caller(limited_world, tokens_per_day=2000)
    answer = caller.ask(stream=stream)
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-limit-tokens"] == "2000"
    limited_world.wait_until_idle()
    left = int(caller.ask().headers["x-ratelimit-remaining-tokens"])
    # The second request is counted in advance: its prompt, and the first 128 tokens of its answer.
    assert left == 2000 - usage["total_tokens"] - usage["prompt_tokens"] - 128


def test_a_request_that_does_not_fit_waits_and_one_that_never_can_is_told_so(limited_world: World) -> None:
    caller = Caller(limited_world, tokens_per_minute=400)
    assert caller.ask("x" * 150).status_code == 200
    refused = caller.ask("x" * 150)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    hopeless = caller.ask("x" * 390)
    assert (hopeless.status_code, error_of(hopeless)["code"]) == (400, "request_exceeds_limit")
    assert "may use 400 a minute" in error_of(hopeless)["message"]
    assert "retry-after" not in hopeless.headers


def test_what_a_long_answer_uses_beyond_its_start_is_waited_for_by_the_next(limited_world: World) -> None:
    caller = Caller(limited_world, tokens_per_minute=300)
    assert caller.ask("count", max_tokens=600).status_code == 200
    limited_world.wait_until_idle()
    refused = caller.ask("x")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after-ms"]) > 60_000  # all of the limit and more was used


def test_images_are_counted_by_their_number(limited_world: World) -> None:
    caller = Caller(limited_world, images_per_minute=2)

    def look(count: int) -> httpx.Response:
        data = base64.b64encode(png((200, 30, 30))).decode()
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        body = asking("") | {"messages": [{"role": "user", "content": [image] * count}]}
        url = f"{limited_world.url}/v1/chat/completions"
        return httpx.post(url, json=body, headers=caller.headers, timeout=30)

    assert error_of(look(3))["code"] == "request_exceeds_limit"
    assert look(2).status_code == 200
    assert error_of(look(1))["code"] == "rate_limit_exceeded"
    assert caller.ask().status_code == 200


def test_as_many_requests_run_at_once_as_may_and_a_place_is_free_when_one_ends(limited_world: World) -> None:
    caller = Caller(limited_world, concurrent_requests=2)
    limited_world.runner.delay_s = 0.01
    try:
        with caller.counting(), caller.counting():
            refused = caller.ask()
            assert (refused.status_code, error_of(refused)["code"]) == (429, "concurrency_limit_exceeded")
            assert "may have 2 requests running at the same time" in error_of(refused)["message"]
            assert refused.headers["retry-after-ms"] == "1000"
    finally:
        limited_world.runner.delay_s = 0.0
    limited_world.wait_until(lambda: caller.ask().status_code == 200)


def test_a_client_that_leaves_frees_its_place(limited_world: World) -> None:
    caller = Caller(limited_world, concurrent_requests=1)
    for _ in range(3):
        with caller.counting():
            pass
        limited_world.wait_until(lambda: caller.ask().status_code == 200)


def test_a_refused_request_frees_its_place(limited_world: World) -> None:
    caller = Caller(limited_world, concurrent_requests=1)
    for _ in range(3):
        assert caller.ask(temperature=5).status_code == 400
        assert caller.ask("x" * 5000).status_code == 400


@pytest.mark.parametrize("prompt_and_answer", ["prompt", "answer"])
def test_the_context_is_bounded_on_both_sides(limited_world: World, prompt_and_answer: str) -> None:
    prompt = int(Caller(limited_world).ask(PROMPT).json()["usage"]["prompt_tokens"])
    caller = Caller(limited_world, context_tokens=prompt + 20)
    if prompt_and_answer == "answer":
        assert caller.ask(PROMPT, max_completion_tokens=20).status_code == 200
        refused = caller.ask(PROMPT, max_completion_tokens=21)
        assert error_of(refused)["param"] == "max_completion_tokens"
    else:
        assert caller.ask("count").json()["choices"][0]["finish_reason"] == "length"
        assert caller.ask(PROMPT + "x" * 19).status_code == 200
        refused = caller.ask(PROMPT + "x" * 20)
        assert error_of(refused)["param"] == "messages"
    assert error_of(refused)["code"] == "context_length_exceeded"
    assert f"{prompt + 20}" in error_of(refused)["message"]


def test_the_limits_of_key_project_and_organisation_hold_together(limited_world: World) -> None:
    accounts = limited_world.accounts
    caller = Caller(limited_world, requests_per_minute=50)
    identity = accounts.verify(caller.headers["authorization"].removeprefix("Bearer "))
    try:
        for subject in (identity.organisation_id, identity.project_id):
            set_limits(accounts.database, subject, Limits(requests_per_day=2))
        two = Caller(limited_world)
        assert [caller.ask().status_code, two.ask().status_code] == [200, 200]
        for refused in (caller.ask(), two.ask()):  # two keys of the same project
            assert re.search("^the (organisation|project) ", error_of(refused)["message"])
    finally:
        for subject in (identity.organisation_id, identity.project_id):
            set_limits(accounts.database, subject, NO_LIMITS)


def test_a_changed_limit_holds_within_a_second(limited_world: World) -> None:
    caller = Caller(limited_world, requests_per_minute=1)
    assert caller.ask().status_code == 200
    set_limits(limited_world.accounts.database, caller.id, Limits(requests_per_minute=100))
    assert CACHE_S <= 1
    limited_world.wait_until(lambda: caller.ask().status_code == 200, timeout_s=2 * CACHE_S)


def test_a_stream_that_is_refused_has_a_status_of_its_own(limited_world: World) -> None:
    caller = Caller(limited_world, requests_per_minute=1)
    assert caller.ask(stream=True).status_code == 200
    refused = caller.ask(stream=True)
    assert refused.status_code == 429
    assert json.loads(refused.content)["error"]["code"] == "rate_limit_exceeded"


def test_the_headers_show_the_limit_with_the_least_left() -> None:
    def left(kind: str, unit: str, period: str, limit: int, remaining: int, reset_ms: int) -> Standing:
        return Standing(Rate(kind, "x", unit, period, limit), remaining, reset_ms)  # type: ignore[arg-type]

    headers = rate_headers(
        [
            left("organisation", "requests", "minute", 100, 50, 30_000),
            left("key", "requests", "day", 1000, 7, 86_000_000),
            left("key", "tokens", "minute", 4000, 3999, 15),
        ]
    )
    assert headers == {
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-remaining-requests": "7",
        "x-ratelimit-reset-requests": "23h53m20s",
        "x-ratelimit-limit-tokens": "4000",
        "x-ratelimit-remaining-tokens": "3999",
        "x-ratelimit-reset-tokens": "15ms",
    }


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0ms"), (999, "999ms"), (1000, "1s"), (1500, "1.5s"), (60_000, "1m0s"), (3_600_001, "1h0m0.001s")],
)
def test_durations_are_written_as_clients_know_them(ms: int, text: str) -> None:
    assert duration(ms) == text
