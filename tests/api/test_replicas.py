"""Three server processes over one PostgreSQL behave as one: keys, limits, caps, answers under a key; and without it."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from musespark.accounts.accounts import Accounts
from musespark.accounts.limits import Limits
from musespark.accounts.limits_config import set_limits
from tests.api.customer import PRICES, Customer, cost_of, price_list
from tests.api.test_server import Process, running
from tests.api.world import MODEL
from tests.postgres import PostgresServer, running_server

NUM_SERVERS = 3
REVOKED_WITHIN_S = 1.0


@dataclass
class Replicas:
    database: PostgresServer
    accounts: Accounts
    servers: list[Process]

    def customer(self, **options: Any) -> Customer:
        return Customer(self.accounts, self.servers[0].url, MODEL, **options)

    def ask(self, customer: Customer, number: int, text: str, headers: dict[str, str], **fields: Any) -> httpx.Response:
        """Request `number` goes to the servers in turn."""
        url = f"{self.servers[number % NUM_SERVERS].url}/v1/chat/completions"
        return httpx.post(url, json=customer.body(text, **fields), headers=customer.headers | headers, timeout=120)

    def ask_many(self, customer: Customer, count: int, text: str, at_once: int, **fields: Any) -> list[httpx.Response]:
        with ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(lambda number: self.ask(customer, number, text, {}, **fields), range(count)))


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    with ExitStack() as stack:
        database = stack.enter_context(running_server())
        url = database.new_database()
        accounts = stack.enter_context(Accounts.open(folder / "own" / "state", url))
        price_list(accounts, MODEL)
        settings = {"MUSESPARK_DATABASE_URL": url, "STEP_S": "0.002", "MUSESPARK_OPEN_METRICS": "true"}
        servers = []
        for number in range(NUM_SERVERS):
            state_dir = folder / str(number) / "state"
            state_dir.mkdir(parents=True)
            shutil.copy(folder / "own" / "state" / "pepper", state_dir / "pepper")  # one secret for all
            servers.append(stack.enter_context(running(state_dir, **settings)))
        for server in servers:
            server.wait_for("/readyz", 200)
        yield Replicas(database, accounts, servers)


def statuses(answers: list[httpx.Response]) -> dict[int, int]:
    return {status: sum(a.status_code == status for a in answers) for status in {a.status_code for a in answers}}


def test_a_revoked_key_is_refused_everywhere_within_a_second(replicas: Replicas) -> None:
    customer = replicas.customer()
    assert statuses(replicas.ask_many(customer, 6, "say: hi", 6)) == {200: 6}
    stop, late = threading.Event(), []

    def load(number: int) -> None:
        while not stop.is_set():
            began = time.monotonic()
            if (
                replicas.ask(customer, number, "say: hi", {}).status_code == 200
                and began > revoked_at + REVOKED_WITHIN_S
            ):
                late.append(began)

    revoked_at = float("inf")
    with ThreadPoolExecutor(NUM_SERVERS) as threads:
        for number in range(NUM_SERVERS):
            threads.submit(load, number)
        time.sleep(0.3)
        replicas.accounts.revoke_key(customer.key_id)
        revoked_at = time.monotonic()
        time.sleep(REVOKED_WITHIN_S + 0.5)
        stop.set()
    assert not late
    assert statuses(replicas.ask_many(customer, 3, "say: hi", 3)) == {401: 3}


def test_a_rate_is_one_for_all_servers(replicas: Replicas) -> None:
    customer = replicas.customer()
    set_limits(replicas.accounts.database, customer.key_id, Limits(requests_per_day=20))
    assert statuses(replicas.ask_many(customer, 45, "say: hi", 9)) == {200: 20, 429: 25}


def test_running_requests_are_counted_together(replicas: Replicas) -> None:
    customer = replicas.customer()
    set_limits(replicas.accounts.database, customer.key_id, Limits(concurrent_requests=4))
    answers = replicas.ask_many(customer, 9, "count", 9, max_tokens=150)
    assert statuses(answers) == {200: 4, 429: 5}
    assert {a.json()["error"]["code"] for a in answers if a.status_code == 429} == {"concurrency_limit_exceeded"}
    assert statuses(replicas.ask_many(customer, 4, "say: hi", 4)) == {200: 4}


def test_a_cap_holds_across_servers_and_all_of_it_can_be_spent(replicas: Replicas) -> None:
    one = replicas.customer().ask("count", max_tokens=1).json()["usage"]["prompt_tokens"]
    base = one * PRICES["text_in"] + PRICES["request_fee"]
    cap = 24 * base + 1500 * PRICES["output"] + 5
    customer = replicas.customer(cap=cap)
    answers = replicas.ask_many(customer, 24, "count", 24, max_tokens=120)
    assert {a.status_code for a in answers} <= {200, 429}
    billed = sum(cost_of(a.json()["usage"]) for a in answers if a.status_code == 200)
    assert customer.held == 0
    assert customer.spent == billed <= cap
    stopped = [a for a in answers if a.status_code == 200 and a.json()["choices"][0]["finish_reason"] == "budget"]
    refused = [a for a in answers if a.status_code == 429]
    assert stopped or refused  # there was less money than they wanted
    left = cap - billed
    assert left < (base if refused else 0) + max(PRICES["output"], PRICES["reasoning"])


def test_one_idempotency_key_on_three_servers_is_one_answer(replicas: Replicas) -> None:
    customer, key = replicas.customer(), {"idempotency-key": "k"}
    with ThreadPoolExecutor(9) as threads:
        ask = lambda number: replicas.ask(customer, number, "count", key, max_tokens=80)  # noqa: E731
        answers = list(threads.map(ask, range(9)))
    assert len({a.content for a in answers}) == 1
    assert customer.spent == cost_of(answers[0].json()["usage"])


def test_while_the_database_is_away_what_runs_ends_and_is_billed_when_it_is_back(replicas: Replicas) -> None:
    customer, server = replicas.customer(), replicas.servers[1]
    with ThreadPoolExecutor(1) as threads:
        running_one = threads.submit(replicas.ask, customer, 1, "count", {}, max_tokens=700)
        deadline = time.monotonic() + 10
        while not customer.held:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        replicas.database.stop("immediate")
        try:
            refused = replicas.ask(customer, 1, "say: hi", {})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ledger_unavailable")
            assert "retry-after-ms" in refused.headers
            state = httpx.get(f"{server.url}/readyz").json()
            assert (state["status"], state["database"]) == ("ready", "away")
            assert "musespark_ledger_database_away 1.0" in httpx.get(f"{server.url}/metrics").text
            answer = running_one.result()
            assert answer.status_code == 200
            assert answer.json()["usage"]["completion_tokens"] == 700
            assert answer.json()["usage"]["billing"]["pending"] is True
        finally:
            replicas.database.start()
    deadline = time.monotonic() + 20
    for pause_s in itertools.repeat(0.1):
        state = httpx.get(f"{server.url}/readyz").json()
        if state["database"] == "up" and "journal_pending_bytes" not in state:
            break
        assert time.monotonic() < deadline, state
        time.sleep(pause_s)
    assert customer.explain(answer)["amount_nano"] == cost_of(answer.json()["usage"]) == customer.spent
    assert customer.held == 0
    assert replicas.ask(customer, 1, "say: hi", {}).status_code == 200


def test_while_the_database_is_away_reports_and_keys_of_answers_say_so(replicas: Replicas) -> None:
    customer, key = replicas.customer(), {"idempotency-key": "k"}
    with ThreadPoolExecutor(1) as threads:
        running_one = threads.submit(replicas.ask, customer, 2, "count", key, max_tokens=300)
        deadline = time.monotonic() + 10
        while not customer.held:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        replicas.database.stop("immediate")
        try:
            for path in ("/v1/usage", "/v1/requests/req_1"):
                refused = httpx.get(f"{replicas.servers[2].url}{path}", headers=customer.headers, timeout=30)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_unavailable")
                assert "retry-after-ms" in refused.headers
            first = running_one.result()  # its client does not wait for the database
            assert first.status_code == 200
        finally:
            replicas.database.start()
    again = replicas.ask(customer, 2, "count", key, max_tokens=300)
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    assert customer.spent == cost_of(first.json()["usage"])
