"""The price list and organisations' currencies as a server process remembers them: most requests ask no database."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from musespark.accounts.prices import DEFAULT_CURRENCY, PriceSnapshot, price_at, read_prices
from musespark.accounts.transactions import DatabaseAway, Transaction
from musespark.errors import PlanRefused

REMEMBER_S = 1.0  # how long a change made by another process may go unseen
MOST_CURRENCIES = 100_000

Call = Callable[[Callable[[Transaction], Any]], Any]


class PriceBook:
    def __init__(self) -> None:
        self._versions: tuple[float, list[PriceSnapshot]] | None = None  # with when they were read (monotonic)
        self._currencies: dict[str, str] = {}

    def price(self, call: Call, model: str, at: float, organisation_id: str | None) -> PriceSnapshot:
        """See Ledger.price. While the database is away the old list counts; without one, raises DatabaseAway."""
        currency = DEFAULT_CURRENCY if organisation_id is None else self._currency(call, organisation_id)
        versions = [version for version in self._list(call) if version.model == model]
        if not versions:
            return PriceSnapshot(model, currency=currency)
        found = price_at(versions, currency, at)
        if found is None:
            raise PlanRefused(f"{model} has no price in {currency} yet")
        return found

    def forget(self) -> None:
        """Read the list again at the next question."""
        self._versions = None

    def _list(self, call: Call) -> list[PriceSnapshot]:
        known = self._versions
        if known is not None and time.monotonic() - known[0] < REMEMBER_S:
            return known[1]
        try:
            versions: list[PriceSnapshot] = call(read_prices)
        except DatabaseAway:
            if known is None:
                raise
            return known[1]
        self._versions = (time.monotonic(), versions)
        return versions

    def _currency(self, call: Call, organisation_id: str) -> str:
        known = self._currencies.get(organisation_id)
        if known is not None:
            return known
        query = "SELECT currency FROM balances WHERE organisation_id = ?"
        try:
            row = call(lambda tx: tx.row(query, (organisation_id,)))
        except DatabaseAway:
            return DEFAULT_CURRENCY
        if row is None:  # nothing was ever paid or charged: it may still get another currency
            return DEFAULT_CURRENCY
        if len(self._currencies) >= MOST_CURRENCIES:
            self._currencies.clear()
        self._currencies[organisation_id] = str(row[0])
        return str(row[0])
