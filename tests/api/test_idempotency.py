"""The same Idempotency-Key: the same answer and one charge, streamed or not, at once or after a broken line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from musespark.accounts import idempotency
from musespark.accounts.limits import NO_LIMITS, Limits
from musespark.accounts.limits_config import set_limits
from tests.api.customer import Customer, cost_of, price_list
from tests.api.test_billing import events_of
from tests.api.world import MODEL, World, running_world

KEY = {"idempotency-key": "order-1"}


@pytest.fixture(scope="module")
def priced_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("idempotency") / "state") as world:
        price_list(world.accounts, MODEL)
        yield world


@pytest.fixture
def customer(priced_world: World) -> Customer:
    return Customer(priced_world.accounts, priced_world.url, MODEL)


def read(customer: Customer, text: str, **fields: Any) -> tuple[httpx.Response, bytes]:
    with customer.streaming(text, KEY, **fields) as answer:
        return answer, b"".join(answer.iter_raw())


def test_an_answer_is_given_again_and_charged_once(customer: Customer) -> None:
    first, second = customer.ask("say: hello", KEY), customer.ask("say: hello", KEY)
    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert customer.spent == cost_of(first.json()["usage"])
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["x-original-request-id"] == first.headers["x-request-id"]
    assert customer.explain(first)["amount_nano"] == customer.spent


def test_a_stream_is_given_again_byte_by_byte(customer: Customer) -> None:
    options = {"stream_options": {"include_usage": True}}
    first, sent = read(customer, "think: hm; say: hello", **options)
    second, again = read(customer, "think: hm; say: hello", **options)
    assert sent == again
    assert sent.endswith(b"data: [DONE]\n\n")
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.headers["x-original-request-id"] == first.headers["x-request-id"]
    assert customer.spent == customer.explain(first)["amount_nano"] > 0


def test_another_body_is_a_409_and_costs_nothing(customer: Customer) -> None:
    customer.ask("say: hello", KEY)
    spent = customer.spent
    refused = customer.ask("say: Hello", KEY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert refused.json()["error"]["param"] == "Idempotency-Key"
    assert customer.spent == spent


@pytest.mark.parametrize("stream", [False, True])
def test_sent_eight_times_at_once_it_is_answered_once(
    customer: Customer, priced_world: World, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(priced_world.runner, "delay_s", 0.005)
    before = priced_world.service.stats.num_generated_tokens_total

    def send(_number: int) -> bytes:
        if stream:
            return read(customer, "count", max_tokens=60)[1]
        return customer.ask("count", KEY, max_tokens=60).content

    with ThreadPoolExecutor(8) as threads:
        answers = set(threads.map(send, range(8)))
    assert len(answers) == 1
    assert priced_world.service.stats.num_generated_tokens_total - before == 60


def test_a_client_whose_line_breaks_gets_the_whole_answer_when_it_asks_again(
    customer: Customer, priced_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(priced_world.runner, "delay_s", 0.003)
    with customer.streaming("count", KEY, max_tokens=200, stream_options={"include_usage": True}) as broken:
        lines = broken.iter_lines()
        next(lines)
    with customer.streaming("count", KEY, max_tokens=200, stream_options={"include_usage": True}) as answer:
        events = events_of(answer)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"])
    assert text == ("0123456789" * 20)[: len(text)]
    assert events[-1]["usage"]["completion_tokens"] == 200
    assert customer.spent == cost_of(events[-1]["usage"])
    assert answer.headers["x-original-request-id"] == broken.headers["x-request-id"]


def test_a_refused_request_leaves_its_key_free(customer: Customer) -> None:
    assert customer.ask("say: hello", KEY, temperature=9).status_code == 400
    set_limits(customer.accounts.database, customer.key_id, Limits(tokens_per_minute=1))
    time.sleep(0.6)
    assert customer.ask("say: hello", KEY).json()["error"]["code"] == "request_exceeds_limit"
    set_limits(customer.accounts.database, customer.key_id, NO_LIMITS)
    time.sleep(0.6)
    assert customer.ask("say: hello", KEY).status_code == 200


def test_without_money_a_key_stays_free(priced_world: World) -> None:
    poor = Customer(priced_world.accounts, priced_world.url, MODEL, cap=10)
    assert poor.ask("say: hello", KEY).status_code == 429
    poor.accounts.ledger.set_cap(poor.key_id, None)
    assert poor.ask("say: hello", KEY).status_code == 200


def test_the_same_key_of_another_project_is_another_key(customer: Customer, priced_world: World) -> None:
    other = Customer(priced_world.accounts, priced_world.url, MODEL)
    customer.ask("say: hello", KEY)
    assert "idempotency-replayed" not in other.ask("say: hello", KEY).headers


def test_without_a_key_every_request_is_its_own(customer: Customer) -> None:
    assert customer.ask("say: hi").json()["id"] != customer.ask("say: hi").json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_a_key_that_is_none_is_a_400(customer: Customer, key: str) -> None:
    refused = customer.ask("say: hello", {"idempotency-key": key})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_an_answer_too_long_to_be_kept_is_not_made_again(customer: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "LONGEST_ANSWER", 100)
    first = customer.ask("say: hello", KEY)
    second = customer.ask("say: hello", KEY)
    assert (first.status_code, second.status_code) == (200, 409)
    assert first.headers["x-request-id"] in second.json()["error"]["message"]
    assert customer.spent == cost_of(first.json()["usage"])


def test_a_failure_that_was_charged_is_the_answer_and_one_that_was_not_leaves_the_key_free(tmp_path: Path) -> None:
    with running_world(tmp_path / "state", delay_s=0.003) as world:
        price_list(world.accounts, MODEL)
        customer = Customer(world.accounts, world.url, MODEL)
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(customer.ask, "count", KEY, max_tokens=2000)
            world.wait_until(lambda: world.service.stats.num_generated_tokens_total > 20)
            world.runner.forward = _fails  # type: ignore[method-assign, assignment]
            first = asked.result()
        assert first.status_code == 500
        spent = customer.spent
        assert spent > 0
        again = customer.ask("count", KEY, max_tokens=2000)
        assert (again.status_code, again.headers["idempotency-replayed"]) == (500, "true")
        assert again.json()["error"]["code"] == "engine_failed"
        assert customer.spent == spent
        new = {"idempotency-key": "another"}  # the engine has stopped: these cost nothing and are tried anew
        assert "idempotency-replayed" not in customer.ask("count", new).headers
        assert "idempotency-replayed" not in customer.ask("count", new).headers


def _fails(_batch: object) -> None:
    raise RuntimeError("the weights are gone")
