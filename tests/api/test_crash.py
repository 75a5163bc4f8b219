"""A server that dies with requests in flight: what they held comes free, and what they reported is billed, once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from musespark.accounts.accounts import Accounts
from tests.api.customer import PRICES, Customer, cost_of, price_list
from tests.api.test_server import Process, running
from tests.api.world import MODEL


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def prepare(state_dir: Path) -> Accounts:
    accounts = Accounts.open(state_dir)
    price_list(accounts, MODEL)
    return accounts


def streaming(customer: Customer, server: Process, num_lines: int) -> str:
    """Read the beginning of a long answer, then have the server die. Returns the request's id."""
    url = f"{server.url}/v1/chat/completions"
    body = customer.body("count", stream=True, max_tokens=2000)
    with httpx.stream("POST", url, json=body, headers=customer.headers, timeout=30) as answer:
        lines = answer.iter_lines()
        for _ in range(num_lines):
            next(lines)
        server.process.kill()
        with pytest.raises(httpx.HTTPError):
            list(lines)
    return answer.headers["x-request-id"]


@pytest.mark.parametrize("num_lines", [pytest.param(2, marks=pytest.mark.slow), 400])
def test_a_killed_server_leaves_no_money_held_and_bills_what_was_reported(tmp_path: Path, num_lines: int) -> None:
    state_dir = tmp_path / "a" / "state"
    with prepare(state_dir) as accounts:
        with running(state_dir, STEP_S="0.001") as dying:
            dying.wait_for("/readyz", 200)
            customer = Customer(accounts, dying.url, MODEL)
            whole = customer.ask("say: hello").json()["usage"]
            id = streaming(customer, dying, num_lines)
            dying.process.wait()
        assert customer.held > 0
        with running(state_dir) as server:
            server.wait_for("/readyz", 200)
            customer.url = server.url
            wait_until(lambda: customer.held == 0)
            [charge] = customer.get(f"/v1/requests/{id}").json()["attempts"]
            tokens = {line["line"]: line["tokens"] for line in charge["lines"]}
            received = max(0, num_lines // 2 - 1)  # an event and an empty line for each token
            assert charge["state"] == "expired"
            # What the engine last reported when it asked for more, never more than what it generated.
            assert tokens["output"] + tokens["reasoning"] <= received + 600
            if num_lines > 300:
                assert tokens["output"] >= 64
            amount = sum(tokens[unit] * PRICES[unit] for unit in tokens)
            assert charge["amount_nano"] == (amount + PRICES["request_fee"] if amount else 0)
            assert customer.spent == cost_of(whole) + charge["amount_nano"]
            rows = customer.get("/v1/usage").json()["data"]
            assert sum(row["amount_nano"] for row in rows) == customer.spent
            usage = customer.ask("say: hello").json()["usage"]  # and it goes on
            assert customer.spent == cost_of(whole) + charge["amount_nano"] + cost_of(usage)


@pytest.mark.slow
def test_an_idempotency_key_survives_the_server_that_kept_its_answer(tmp_path: Path) -> None:
    state_dir, key = tmp_path / "a" / "state", {"idempotency-key": "k"}
    with prepare(state_dir) as accounts:
        with running(state_dir) as dying:
            dying.wait_for("/readyz", 200)
            customer = Customer(accounts, dying.url, MODEL)
            first = customer.ask("say: hello", key)
            dying.process.kill()
            dying.process.wait()
        with running(state_dir) as server:
            server.wait_for("/readyz", 200)
            customer.url = server.url
            assert customer.ask("say: hello", key).content == first.content
            assert customer.spent == cost_of(first.json()["usage"])


def test_sigterm_ends_requests_and_bills_them_before_the_process_does(tmp_path: Path) -> None:
    state_dir = tmp_path / "a" / "state"
    with prepare(state_dir) as accounts, running(state_dir, STEP_S="0.002", MUSESPARK_DRAIN_S="0.2") as server:
        server.wait_for("/readyz", 200)
        customer = Customer(accounts, server.url, MODEL)
        url = f"{server.url}/v1/chat/completions"
        body = customer.body("count", stream=True, max_tokens=2000)
        with httpx.stream("POST", url, json=body, headers=customer.headers, timeout=30) as answer:
            lines = answer.iter_lines()
            for _ in range(20):
                next(lines)
            server.process.terminate()
            rest = "\n".join(lines)
        assert '"shutting_down"' in rest
        assert server.end()[0] == 0
        [charge] = accounts.ledger.explain(answer.headers["x-request-id"])
        assert (charge["state"], charge["outcome"]) == ("posted", "failed")
        assert charge["amount_nano"] == customer.spent > 0
        assert customer.held == 0
