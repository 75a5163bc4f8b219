"""How much money is free for a request: the least of what its wallet and its monthly caps leave.

Free is what is neither spent nor held. Reading it locks the organisation's row of balances, so that until the end of
the transaction nobody else takes from the same money: all that the ledger does for one organisation comes one after the
other, and organisations do not wait for each other.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from musespark.accounts import credits, lots
from musespark.accounts.prices import DEFAULT_CURRENCY
from musespark.accounts.transactions import Transaction
from musespark.errors import (
    CreditBalanceExhausted,
    KeySpendLimitExceeded,
    OrganizationSpendLimitExceeded,
    ProjectSpendLimitExceeded,
    SpendLimit,
)


def period_of(at: float) -> str:
    """The calendar month in UTC, as 2026-11. Daylight saving does not exist in UTC, so every month has one length."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m")


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose money a request spends, and the month that it counts in."""

    organisation_id: str
    project_id: str
    key_id: str
    period: str

    @property
    def ids(self) -> tuple[str, str, str]:
        return (self.organisation_id, self.project_id, self.key_id)


@dataclass(frozen=True, slots=True)
class _Bound:
    free: int
    error: type[SpendLimit]
    what: str  # the sentence's subject
    others: str  # the SQL condition of the holds that draw from the same money


class Purse:
    def __init__(self, tx: Transaction, scope: Scope, bounds: list[_Bound]) -> None:
        self._tx = tx
        self._scope = scope
        self._bounds = bounds
        self.free = min(bound.free for bound in bounds)  # below zero where a limit was lowered after it was used

    @classmethod
    def open(cls, tx: Transaction, scope: Scope, now: float) -> Purse:
        wallet, overdraft, attention_at = _balance(tx, scope.organisation_id)
        if attention_at is not None and attention_at <= now:
            credits.attend(tx, scope.organisation_id, now)
            wallet, overdraft, _ = _balance(tx, scope.organisation_id)
        bounds = [
            _Bound(wallet + overdraft, OrganizationSpendLimitExceeded, "the plan's limit of overage", _ORGANISATION)
            if overdraft
            else _Bound(wallet, CreditBalanceExhausted, "the credit balance", _ORGANISATION)
        ]
        caps = tx.rows(
            "SELECT c.scope_id, c.monthly - COALESCE(s.held + s.posted, 0) FROM caps c "
            "LEFT JOIN spending s ON s.scope_id = c.scope_id AND s.period = ? WHERE c.scope_id IN (?, ?, ?)",
            (scope.period, *scope.ids),
        )
        for scope_id, free in caps:
            if scope_id == scope.organisation_id:
                bound = _Bound(
                    free, OrganizationSpendLimitExceeded, "the organisation's monthly cap", _ORGANISATION_CAP
                )
            elif scope_id == scope.project_id:
                bound = _Bound(free, ProjectSpendLimitExceeded, "the project's monthly cap", _PROJECT_CAP)
            else:
                bound = _Bound(free, KeySpendLimitExceeded, "the key's monthly cap", _KEY_CAP)
            bounds.append(bound)
        return cls(tx, scope, bounds)

    def others_may_free(self, needed: int, hold_id: str) -> bool:
        """Whether each bound that leaves less than `needed` has other holds that may end below what they hold."""
        values = {
            _ORGANISATION: (self._scope.organisation_id,),
            _ORGANISATION_CAP: (self._scope.organisation_id, self._scope.period),
            _PROJECT_CAP: (self._scope.organisation_id, self._scope.period, self._scope.project_id),
            _KEY_CAP: (self._scope.organisation_id, self._scope.period, self._scope.key_id),
        }
        return all(
            self._tx.row(_OTHERS + bound.others, (hold_id, *values[bound.others])) is not None
            for bound in self._bounds
            if bound.free < needed
        )

    def refusal(self, needed: int, *, held_by_others: bool) -> SpendLimit:
        """The error of the tightest bound."""
        bound = min(self._bounds, key=lambda bound: bound.free)
        held = "; requests in flight hold some of it, so it may work in a moment" if held_by_others else ""
        return bound.error(
            f"{bound.what} leaves {max(bound.free, 0):,} nano-units and {needed:,} are needed{held}",
            held_by_others=held_by_others,
        )


_OTHERS = "SELECT 1 FROM holds WHERE state = 'open' AND waiting = 0 AND held > 0 AND id <> ? AND organisation_id = ?"
_ORGANISATION = " LIMIT 1"
_ORGANISATION_CAP = " AND period = ? LIMIT 1"
_PROJECT_CAP = " AND period = ? AND project_id = ? LIMIT 1"
_KEY_CAP = " AND period = ? AND key_id = ? LIMIT 1"


def _balance(tx: Transaction, organisation_id: str) -> tuple[int, int, int | None]:
    query = "SELECT wallet, overdraft, attention_at FROM balances WHERE organisation_id = ?" + tx.for_update
    row = tx.row(query, (organisation_id,))
    if row is None:  # the first thing that happens to this organisation here
        lots.open_books(tx, organisation_id, DEFAULT_CURRENCY)
        row = tx.row(query, (organisation_id,))
        assert row is not None
    return row[0], row[1], row[2]
