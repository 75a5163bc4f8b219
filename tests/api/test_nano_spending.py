"""The model in the box under real load and one cap: not a nano-dollar too much, nobody refused while money is free.

And clients that leave: each is billed exactly what the engine's own record says.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from musespark.accounts.accounts import Accounts
from musespark.api import logs
from musespark.api.app import create_app
from musespark.api.load import load_model
from musespark.api.server import _Server, _uvicorn_config, bind
from musespark.api.settings import Settings
from tests.api.customer import PRICES, Customer, cost_of, price_list
from tests.api.world import LOG

NUM_REQUESTS = 50
DEAREST = max(PRICES["output"], PRICES["reasoning"])


@dataclass
class Nano:
    accounts: Accounts
    url: str
    model: str

    def customer(self, cap: int | None = None) -> Customer:
        return Customer(self.accounts, self.url, self.model, cap=cap)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nano]:
    with running_nano(tmp_path_factory.mktemp("nano") / "state") as server:
        yield server


@contextmanager
def running_nano(state_dir: Path) -> Iterator[Nano]:
    logs.configure(LOG)
    settings = Settings(state_dir=state_dir, port=0, threads=1)
    loaded = load_model(settings)
    with Accounts.open(state_dir) as accounts, bind("127.0.0.1", 0) as listener:
        accounts.ledger.start()
        model = loaded.provider.model.id
        price_list(accounts, model)
        app = create_app(loaded.provider, accounts, settings)
        server = _Server(_uvicorn_config(app, settings))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
        thread.start()
        yield Nano(accounts, f"http://127.0.0.1:{listener.getsockname()[1]}", model)
        server.should_exit = True
        asyncio.run(loaded.close(0.0))
        thread.join(timeout=30)


def test_fifty_long_requests_under_one_cap_spend_all_of_it_and_not_a_nano_dollar_more(nano: Nano) -> None:
    text = "Tell me a long story about a lighthouse."
    prompt = nano.customer().ask(text, max_tokens=1).json()["usage"]["prompt_tokens"]
    base = prompt * PRICES["text_in"] + PRICES["request_fee"]
    cap = 30 * base + 3001 * PRICES["output"]  # half of what they want: 50 prompts, 6,000 tokens
    customer = nano.customer(cap)
    watched: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            spending = nano.accounts.ledger.spending(customer.key_id)
            watched.append(spending.posted_nano + spending.held_nano)
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(NUM_REQUESTS) as threads:
        ask = lambda _number: customer.ask(text, max_tokens=120, ignore_eos=True)  # noqa: E731
        answers = list(threads.map(ask, range(NUM_REQUESTS)))
    done.set()
    watcher.join()
    assert max(watched) <= cap
    answered = [answer.json() for answer in answers if answer.status_code == 200]
    refused = [answer.json()["error"]["code"] for answer in answers if answer.status_code != 200]
    assert set(refused) <= {"key_spend_limit_exceeded"}
    billed = sum(cost_of(answer["usage"]) for answer in answered)
    assert billed == customer.spent <= cap
    assert customer.held == 0
    stopped = [answer for answer in answered if answer["choices"][0]["finish_reason"] == "budget"]
    assert stopped or refused
    assert cap - billed < (base if refused else 0) + DEAREST  # what is left would not have paid for anybody


def test_thirty_per_cent_of_clients_leave_and_are_billed_what_the_engine_has_written_down(nano: Nano) -> None:
    customer, dice = nano.customer(), random.Random(7)
    plans = [dice.randrange(1, 20) if dice.random() < 0.3 else None for _ in range(60)]
    assert 10 < sum(plan is not None for plan in plans) < 30

    def converse(number: int) -> str:
        text = f"Count to a hundred, and begin with {number}."
        with customer.streaming(text, max_tokens=400, ignore_eos=True) as answer:
            lines = (line for line in answer.iter_lines() if line)
            for sent, _line in enumerate(lines):
                if sent == plans[number]:
                    break
        return answer.headers["x-request-id"]

    with ThreadPoolExecutor(12) as threads:
        ids = list(threads.map(converse, range(len(plans))))
    deadline = time.monotonic() + 20
    while customer.held:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    records = engine_records(ids)
    total, outcomes = 0, []
    for id in ids:
        [charge] = customer.get(f"/v1/requests/{id}").json()["attempts"]
        tokens = {line["line"]: line["tokens"] for line in charge["lines"]}
        record = records[id]
        assert tokens["output"] + tokens["reasoning"] == record["completion_tokens"]
        assert tokens["text_in"] + tokens["cached_in"] == record["prompt_tokens"]
        assert tokens["cached_in"] == record["cached_tokens"]
        assert charge["amount_nano"] == sum(tokens[unit] * PRICES[unit] for unit in tokens) + PRICES["request_fee"]
        total += charge["amount_nano"]
        outcomes.append(charge["outcome"])
    assert total == customer.spent
    assert outcomes.count("aborted") > 5
    assert outcomes.count("completed") > 30


def engine_records(ids: list[str]) -> dict[str, dict[str, int]]:
    """What the engine reported at the end of each request, from the server's log."""
    deadline = time.monotonic() + 10
    while True:
        lines = [json.loads(line) for line in LOG.getvalue().splitlines() if '"request_id"' in line]
        found = {line["request_id"]: line for line in lines if "completion_tokens" in line}
        if set(ids) <= set(found):
            return found
        assert time.monotonic() < deadline, set(ids) - set(found)
        time.sleep(0.02)
