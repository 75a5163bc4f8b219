"""What requests cost, seen from outside: an answer says it, `/v1/requests/{id}` explains it, caps stop to the token."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from musespark.providers.local import LocalProvider
from tests.api.customer import PRICES, Customer, cost_of, price_list
from tests.api.world import MODEL, World, running_world

THINK = "think: hmm well; say: hello"


@pytest.fixture(scope="module")
def priced_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("billing") / "state") as world:
        price_list(world.accounts, MODEL)
        yield world


def customer_of(world: World, **options: Any) -> Customer:
    return Customer(world.accounts, world.url, MODEL, **options)


@pytest.fixture
def customer(priced_world: World) -> Customer:
    return customer_of(priced_world)


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def settled(customer: Customer, answer: httpx.Response) -> dict[str, Any]:
    """The charge of a request whose client has left, as soon as it is known."""
    deadline = time.monotonic() + 10
    while (charge := customer.explain(answer))["state"] == "open":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return charge


def without_input(charge: dict[str, Any]) -> int:
    return sum(line["tokens"] for line in charge["lines"] if line["line"] in ("output", "reasoning"))


# Whole answers


def test_an_answer_says_what_it_cost_line_by_line(customer: Customer) -> None:
    usage = customer.ask(THINK).json()["usage"]
    billing = usage["billing"]
    assert billing["amount_nano_usd"] == cost_of(usage) == customer.spent
    assert sum(line["amount_nano_usd"] for line in billing["lines"]) == billing["amount_nano_usd"]
    assert billing["price_version"] == 1
    tokens = {line["unit"]: line["tokens"] for line in billing["lines"] if line["unit"] != "request"}
    assert tokens["reasoning"] == usage["completion_tokens_details"]["reasoning_tokens"] > 0
    assert sum(tokens.values()) == usage["total_tokens"]
    assert customer.held == 0


def test_what_comes_from_the_cache_costs_its_own_price_and_is_counted_once(customer: Customer) -> None:
    text = "x" * 300
    customer.ask(text)
    usage = customer.ask(text).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 256
    assert usage["billing"]["amount_nano_usd"] == cost_of(usage)


def test_several_choices_pay_for_their_prompt_once(customer: Customer) -> None:
    usage = customer.ask("say: hello", n=3).json()["usage"]
    assert usage["completion_tokens"] > 15
    assert usage["billing"]["amount_nano_usd"] == cost_of(usage)


def test_a_stream_says_it_in_its_last_event(customer: Customer) -> None:
    with customer.streaming(THINK, stream_options={"include_usage": True}) as answer:
        usage = events_of(answer)[-1]["usage"]
    assert usage["billing"]["amount_nano_usd"] == cost_of(usage) == customer.spent


def test_a_stream_that_was_not_asked_for_its_usage_is_explained_afterwards(customer: Customer) -> None:
    with customer.streaming(THINK) as answer:
        assert not any(event.get("usage") for event in events_of(answer))
    assert customer.explain(answer)["amount_nano"] == customer.spent > 0


def test_a_long_answer_is_paid_for_in_steps(customer: Customer) -> None:
    with customer.streaming("count", max_tokens=1000, stream_options={"include_usage": True}) as answer:
        events = events_of(answer)
    usage = events[-1]["usage"]
    assert usage["completion_tokens"] == 1000
    assert usage["billing"]["amount_nano_usd"] == cost_of(usage) == customer.spent
    kinds = [transfer["kind"] for transfer in customer.explain(answer)["transfers"]]
    assert kinds.count("extend") >= 5
    assert customer.held == 0


def test_a_charge_is_explained_by_its_tokens_prices_version_and_times(customer: Customer) -> None:
    before = int(time.time())
    answer = customer.ask(THINK)
    charge = customer.explain(answer)
    usage = answer.json()["usage"]
    assert charge["hold_id"] == usage["billing"]["hold_id"] == f"{answer.headers['x-request-id']}/1"
    assert (charge["state"], charge["outcome"], charge["price_version"]) == ("posted", "completed", 1)
    assert charge["prices"] == PRICES
    assert charge["amount_nano"] == cost_of(usage)
    assert before <= charge["opened_at"] <= charge["settled_at"] <= time.time()
    assert (charge["organisation_id"], charge["key_id"]) == (customer.organisation_id, customer.key_id)
    assert answer.json()["id"] == answer.headers["x-request-id"].replace("req_", "chatcmpl-")


def test_a_request_of_another_organisation_does_not_exist(customer: Customer, priced_world: World) -> None:
    answer = customer.ask("say: hi")
    path = f"/v1/requests/{answer.headers['x-request-id']}"
    stranger = customer_of(priced_world).get(path)
    assert stranger.status_code == 404
    assert customer.get("/v1/requests/req_none").json()["error"] | {"message": ""} == stranger.json()["error"] | {
        "message": ""
    }


# Ends that are no ends


@pytest.mark.parametrize("num_chunks", [0, 1, 3, 40, 300])
def test_a_client_that_leaves_pays_for_what_was_generated(
    priced_world: World, monkeypatch: pytest.MonkeyPatch, num_chunks: int
) -> None:
    customer = customer_of(priced_world)
    monkeypatch.setattr(priced_world.runner, "delay_s", 0.002)
    with customer.streaming("count", max_tokens=2000) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        for _ in range(num_chunks):
            next(lines)
    charge = settled(customer, answer)
    assert (charge["state"], charge["outcome"]) == ("posted", "aborted")
    assert num_chunks - 2 <= without_input(charge) < 2000
    assert charge["amount_nano"] == customer.spent
    assert customer.held == 0
    log = json.loads(priced_world.log_line(answer.headers["x-request-id"]))
    assert without_input(charge) == log["completion_tokens"]  # the engine's own count


def test_what_is_refused_costs_nothing_and_holds_nothing(customer: Customer) -> None:
    for fields in ({"temperature": 9}, {"max_tokens": 100_000}, {"model": "none"}):
        answer = customer.ask("say: hi", **fields)
        assert 400 <= answer.status_code < 500
        charges = customer.get(f"/v1/requests/{answer.headers['x-request-id']}")
        if charges.status_code == 200:
            assert charges.json()["attempts"][0]["amount_nano"] == 0
    assert customer.spent == customer.held == 0


@pytest.fixture
def fragile_world(tmp_path: Path) -> Iterator[World]:
    """A server of its own, whose engine may stop for good."""
    with running_world(tmp_path / "state", delay_s=0.002) as world:
        price_list(world.accounts, MODEL)
        yield world


def fail(world: World) -> None:
    def forward(_batch: object) -> Any:
        raise RuntimeError("the weights are gone")

    world.runner.forward = forward  # type: ignore[method-assign]


def test_an_engine_that_fails_before_the_first_token_costs_nothing(fragile_world: World) -> None:
    customer = customer_of(fragile_world)
    fail(fragile_world)
    answer = customer.ask("say: hi")
    assert answer.status_code == 500
    charge = customer.explain(answer)
    assert (charge["state"], charge["amount_nano"]) == ("void", 0)
    assert customer.spent == customer.held == 0


def test_an_engine_that_fails_in_mid_answer_is_paid_for_what_came(fragile_world: World) -> None:
    customer = customer_of(fragile_world)
    with customer.streaming("count", max_tokens=2000) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        for _ in range(20):
            next(lines)
        fail(fragile_world)
        assert any('"engine_failed"' in line for line in lines)
    charge = settled(customer, answer)
    assert (charge["state"], charge["outcome"]) == ("posted", "failed")
    assert without_input(charge) >= 18


def test_a_request_that_is_withdrawn_in_the_queue_holds_nothing(
    priced_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = customer_of(priced_world)
    chat = LocalProvider.chat
    admitted: list[bool] = []

    async def slowly(provider: LocalProvider, *args: Any, **options: Any) -> Any:
        admit = options["admit"]

        async def note(prompt: Any) -> Any:
            allowance = await admit(prompt)
            admitted.append(True)
            return allowance

        return await chat(provider, *args, **options | {"admit": note})

    monkeypatch.setattr(LocalProvider, "chat", slowly)
    priced_world.runner.unblocked.clear()
    try:
        url = f"{priced_world.url}/v1/chat/completions"
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=customer.body("count"), headers=customer.headers, timeout=0.5)
    finally:
        priced_world.runner.unblocked.set()
    assert admitted
    priced_world.wait_until(lambda: customer.held == 0)


# Caps


def cost_without_output(customer: Customer, text: str) -> int:
    """The prompt, computed from nothing, and the fee."""
    usage = customer.ask(text, max_tokens=1).json()["usage"]
    return int(usage["prompt_tokens"] * PRICES["text_in"] + PRICES["request_fee"])


@pytest.mark.parametrize("paid_for", [1, 2, 127, 128, 129, 300])
@pytest.mark.parametrize("stream", [False, True])
def test_a_cap_stops_at_the_exact_token_and_says_so(priced_world: World, paid_for: int, stream: bool) -> None:
    base = cost_without_output(customer_of(priced_world), "count")
    # Any token may turn out to be reasoning, which is dearer: what is held for one is 11, and 7 is billed.
    customer = customer_of(
        priced_world, cap=base + paid_for * PRICES["output"] + PRICES["reasoning"] - PRICES["output"]
    )
    if stream:
        with customer.streaming("count", stream_options={"include_usage": True}) as answer:
            events = events_of(answer)
        usage, choices = events[-1]["usage"], [event["choices"][0] for event in events[:-1]]
        [choice] = [choice for choice in choices if choice["finish_reason"]]
    else:
        body = customer.ask("count").json()
        usage, [choice] = body["usage"], body["choices"]
    assert choice["finish_reason"] == "budget"
    assert choice["error"]["code"] == "key_spend_limit_exceeded"
    assert "monthly cap" in choice["error"]["message"]
    assert usage["completion_tokens"] == paid_for
    assert customer.spent == cost_of(usage) == base + paid_for * PRICES["output"]
    assert customer.held == 0


def test_without_money_for_one_token_a_request_is_refused_before_anything_is_computed(priced_world: World) -> None:
    base = cost_without_output(customer_of(priced_world), "count")
    customer = customer_of(priced_world, cap=base + PRICES["reasoning"] - 1)
    refused = customer.ask("count")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "key_spend_limit_exceeded")
    assert customer.spent == customer.held == 0


@pytest.mark.parametrize("whose", ["organisation", "project"])
def test_the_error_names_whose_cap_it_was(priced_world: World, whose: str) -> None:
    customer = customer_of(priced_world)
    subject = customer.organisation_id if whose == "organisation" else customer.project_id
    customer.accounts.ledger.set_cap(subject, 0)
    code = {"organisation": "organization", "project": "project"}[whose]
    assert customer.ask("count").json()["error"]["code"] == f"{code}_spend_limit_exceeded"


def test_used_up_credit_is_a_402_of_its_own(priced_world: World) -> None:
    refused = customer_of(priced_world, credit=100).ask("count")
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "credit_balance_exhausted")


def test_without_a_price_everything_is_free_and_metered_all_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_world(tmp_path_factory.mktemp("free") / "state") as world:
        customer = customer_of(world, credit=0)
        usage = customer.ask("say: hello").json()["usage"]
        assert usage["billing"]["amount_nano_usd"] == usage["billing"]["price_version"] == 0
        assert sum(line["tokens"] for line in usage["billing"]["lines"]) == usage["total_tokens"]
