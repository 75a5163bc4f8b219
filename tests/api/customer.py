"""A paying organisation of its own for one test: a price list of odd prices, credit, caps, and requests under a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from musespark.accounts import credits, organisations
from musespark.accounts.accounts import Accounts
from musespark.accounts.actor import machine
from musespark.accounts.prices import PriceSnapshot, set_price

# Coprime, so that no mistake cancels another.
PRICES = {"text_in": 3, "image_in": 5, "cached_in": 1, "output": 7, "reasoning": 11, "request_fee": 101}
PLENTY = 10**12


def price_list(accounts: Accounts, model: str) -> PriceSnapshot:
    return set_price(accounts.database, model, **PRICES)


def cost_of(usage: dict[str, Any]) -> int:
    """What a usage object costs by the list above, computed from OpenAI's fields alone. For prompts without images."""
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    return (
        (usage["prompt_tokens"] - cached) * PRICES["text_in"]
        + cached * PRICES["cached_in"]
        + (usage["completion_tokens"] - reasoning) * PRICES["output"]
        + reasoning * PRICES["reasoning"]
        + PRICES["request_fee"]
    )


class Customer:
    def __init__(
        self, accounts: Accounts, url: str, model: str, *, credit: int = PLENTY, cap: int | None = None
    ) -> None:
        self.accounts = accounts
        self.url = url
        self.model = model
        self.organisation_id = organisations.create_organisation(accounts.database, machine(), "customer").id
        if credit:
            credits.top_up(accounts.database, self.organisation_id, credit, "payment 1")
        new = accounts.create_key("customer's", organisation_id=self.organisation_id)
        self.key_id, self.project_id = new.key.id, new.key.project_id
        self.headers = {"authorization": f"Bearer {new.secret}"}
        if cap is not None:
            accounts.ledger.set_cap(self.key_id, cap)

    def body(self, text: str, **fields: Any) -> dict[str, Any]:
        return {"model": self.model, "messages": [{"role": "user", "content": text}], **fields}

    def ask(self, text: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        url = f"{self.url}/v1/chat/completions"
        return httpx.post(url, json=self.body(text, **fields), headers=self.headers | (headers or {}), timeout=120)

    @contextmanager
    def streaming(self, text: str, headers: dict[str, str] | None = None, **fields: Any) -> Iterator[httpx.Response]:
        url = f"{self.url}/v1/chat/completions"
        body = self.body(text, stream=True, **fields)
        with httpx.stream("POST", url, json=body, headers=self.headers | (headers or {}), timeout=120) as answer:
            yield answer

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        return httpx.get(self.url + path, params=parameters, headers=self.headers, timeout=30)

    def explain(self, answer: httpx.Response) -> dict[str, Any]:
        """The one attempt of the request that was answered so."""
        found = self.get(f"/v1/requests/{answer.headers['x-request-id']}").json()
        [attempt] = found["attempts"]
        return dict(attempt)

    @property
    def spent(self) -> int:
        return self.accounts.ledger.spending(self.key_id).posted_nano

    @property
    def held(self) -> int:
        return self.accounts.ledger.spending(self.key_id).held_nano
