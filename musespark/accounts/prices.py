"""The price list: versions per model and currency, each with the moment from which it counts.

A price is an integer of nano-units per token, so the cost of n tokens is a product and nothing is ever rounded. The
smallest price is thus 0.001 of the currency per million tokens. Versions are append-only and never begin in the past:
what was once charged can always be computed again. A request keeps the version of the moment at which it was admitted.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from musespark.accounts.database import Database
from musespark.accounts.lines import Lines
from musespark.accounts.tables.prices import MAX_AMOUNT, MAX_PRICE, PRICE_UNITS
from musespark.accounts.transactions import Transaction
from musespark.errors import InvalidRequest

DEFAULT_CURRENCY = "USD"
LONGEST_MODEL = 200
MAX_TIME = 2**40  # seconds since 1970: the year 36,800


@dataclass(frozen=True, slots=True)
class PriceSnapshot:
    """One version of one model's prices, in nano-units per token; version 0 is "no price list": everything is free."""

    model: str
    version: int = 0
    currency: str = DEFAULT_CURRENCY
    text_in: int = 0
    image_in: int = 0
    cached_in: int = 0
    output: int = 0
    reasoning: int = 0
    request_fee: int = 0
    effective_from: int = 0

    @property
    def units(self) -> tuple[int, int, int, int, int]:
        """In the order of PRICE_UNITS."""
        return (self.text_in, self.image_in, self.cached_in, self.output, self.reasoning)

    def cost(self, lines: Lines, *, fee: bool = True) -> int:
        amount = sum(count * price for count, price in zip(lines.counts, self.units, strict=True))
        return amount + (self.request_fee if fee else 0)

    def most_for_input(self, text_in: int, image_in: int) -> int:
        """The fee and the input, whatever part of it turns out to be cached."""
        return (
            self.request_fee
            + text_in * max(self.text_in, self.cached_in)
            + image_in * max(self.image_in, self.cached_in)
        )

    @property
    def most_per_output(self) -> int:
        """One generated token: whether it will be reasoning is not known beforehand."""
        return max(self.output, self.reasoning)

    def as_units(self) -> list[dict[str, Any]]:
        """For people and GET /v1/models: what a unit costs, and since when."""
        amounts = dict(zip(PRICE_UNITS, self.units, strict=True)) | {"request": self.request_fee}
        name = f"nano_{self.currency.lower()}"
        return [{"unit": unit, name: amount, "effective_from": self.effective_from} for unit, amount in amounts.items()]


def set_price(
    database: Database,
    model: str,
    *,
    text_in: int,
    output: int,
    image_in: int | None = None,
    cached_in: int | None = None,
    reasoning: int | None = None,
    request_fee: int = 0,
    currency: str = DEFAULT_CURRENCY,
    effective_from: int | None = None,
    now: float | None = None,
) -> PriceSnapshot:
    """Add a version, from now on where `effective_from` is None. Kinds left out cost as much as text_in or output.

    Raises InvalidRequest naming the field for a price that is negative or too high, and for a beginning in the past.
    """
    at = int(time.time() if now is None else now)
    start = at if effective_from is None else effective_from
    units = (
        text_in,
        text_in if image_in is None else image_in,
        text_in if cached_in is None else cached_in,
        output,
        output if reasoning is None else reasoning,
    )
    if not 1 <= len(model) <= LONGEST_MODEL or not model.isprintable():
        raise InvalidRequest(f"a model's name has 1 to {LONGEST_MODEL} printable characters", param="model")
    check_currency(currency)
    for unit, price in zip(PRICE_UNITS, units, strict=True):
        check_amount(unit, price, MAX_PRICE, "nano-units per token")
    check_amount("request_fee", request_fee, MAX_AMOUNT, "nano-units per request")
    check_time("effective_from", start)
    if start < at:
        raise InvalidRequest(
            f"effective_from {start} lies in the past (it is {at} now); what was charged can't be priced anew",
            param="effective_from",
        )

    def insert(tx: Transaction) -> PriceSnapshot:
        tx.alone()
        row = tx.row("SELECT MAX(version) FROM price_versions WHERE model = ?", (model,))
        assert row is not None
        version = (row[0] or 0) + 1
        found = tx.row(
            "SELECT version FROM price_versions WHERE model = ? AND currency = ? AND effective_from >= ?",
            (model, currency, start),
        )
        if found is not None:
            raise InvalidRequest(
                f"version {found[0]} of the price of {model} begins at {start} or later; a new version begins after it",
                param="effective_from",
            )
        snapshot = PriceSnapshot(model, version, currency, *units, request_fee, start)
        tx.execute(
            f"INSERT INTO price_versions (model, version, currency, {', '.join(PRICE_UNITS)}, request_fee, "
            "effective_from, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (model, version, currency, *units, request_fee, start, at),
        )
        return snapshot

    return database.transact(insert, durable=True)


def list_prices(database: Database, model: str | None = None) -> list[PriceSnapshot]:
    """Every version, of one model or of all, in the order in which they begin."""
    return database.transact(lambda tx: read_prices(tx, model))


def read_prices(tx: Transaction, model: str | None = None) -> list[PriceSnapshot]:
    query = (
        f"SELECT model, version, currency, {', '.join(PRICE_UNITS)}, request_fee, effective_from FROM price_versions "
        + ("" if model is None else "WHERE model = ? ")
        + "ORDER BY model, effective_from, version"
    )
    return [PriceSnapshot(*row) for row in tx.rows(query, () if model is None else (model,))]


def price_at(versions: list[PriceSnapshot], currency: str, at: float) -> PriceSnapshot | None:
    """The version of `versions` (in order) that counts at a moment; None before the first one."""
    return next((v for v in reversed(versions) if v.currency == currency and v.effective_from <= at), None)


def check_amount(field: str, amount: object, most: int, unit: str) -> None:
    """Raises InvalidRequest unless `amount` is an integer from 0 to `most`."""
    if not isinstance(amount, int) or isinstance(amount, bool) or not 0 <= amount <= most:
        text = f"{field} is {str(amount)[:40]}; it must be an integer from 0 to {most:,} {unit}"
        raise InvalidRequest(text, param=field)


def check_time(field: str, at: object) -> None:
    if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at <= MAX_TIME:
        raise InvalidRequest(f"{field} is {str(at)[:40]}; it must be UTC seconds since 1970", param=field)


def check_currency(currency: str) -> None:
    if re.fullmatch("[A-Z]{3}", currency) is None:
        raise InvalidRequest(f"the currency is {currency[:20]!r}; it must be a code like USD or EUR", param="currency")
