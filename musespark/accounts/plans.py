"""Plans: what an organisation pays a month, what it gets for it, and what happens beyond that.

A plan is a row per version and never changes; organisations keep the version that they subscribed to. Amounts are
integer nano-units. Subscribing is in subscriptions.py.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from musespark.accounts.database import Database
from musespark.accounts.limits import Limits
from musespark.accounts.prices import DEFAULT_CURRENCY, check_amount, check_currency
from musespark.accounts.tables.prices import MAX_AMOUNT
from musespark.accounts.transactions import Transaction
from musespark.errors import InvalidRequest, NotFound

LONGEST_TRIAL_DAYS = 365
LONGEST_LIMITS = 10_000  # characters of JSON

Kind = Literal["standard", "trial", "partner"]
Overage = Literal["stop", "bill"]
Outage = Literal["refuse", "allow"]


@dataclass(frozen=True, slots=True)
class Plan:
    """`included_nano` is credit that each period brings and that ends with it. `overage`: beyond all credit, "stop", or
    "bill" up to `overage_limit_nano`. `outage`: while the database is away, "refuse" new requests, or "allow" them up
    to `outage_bound_nano` per server process. A plan with `trial_days` ends after them, and `next_plan` begins."""

    id: str
    version: int = 0
    name: str = "no plan"
    kind: Kind = "standard"
    currency: str = DEFAULT_CURRENCY
    monthly_fee_nano: int = 0
    included_nano: int = 0
    overage: Overage = "stop"
    overage_limit_nano: int = 0
    limits: dict[str, Any] = field(default_factory=dict)
    outage: Outage = "refuse"
    outage_bound_nano: int = 0
    trial_days: int | None = None
    next_plan: str | None = None


NO_PLAN = Plan("none")
_AMOUNTS = ("monthly_fee_nano", "included_nano", "overage_limit_nano", "outage_bound_nano")
_LIMITS = [f.name for f in fields(Plan)].index("limits")
_COLUMNS = (
    "plan_id, version, name, kind, currency, monthly_fee, included, overage, overage_limit, limits, outage, "
    "outage_bound, trial_days, next_plan"
)


def create_plan(database: Database, plan: Plan, *, now: float | None = None) -> Plan:
    """Add a plan, or a new version of one: `plan.version` is ignored. Raises InvalidRequest naming the field.

    Refused are plans whose `next_plan` leads back to themselves, and combinations that mean nothing.
    """
    at = int(time.time() if now is None else now)
    limits = _check(plan)

    def insert(tx: Transaction) -> Plan:
        tx.alone()
        _check_successors(tx, plan)
        row = tx.row("SELECT MAX(version) FROM plan_versions WHERE plan_id = ?", (plan.id,))
        version = ((row[0] if row else None) or 0) + 1
        values = [getattr(plan, f.name) for f in fields(Plan)]
        values[1], values[_LIMITS] = version, limits
        marks = ", ".join(["?"] * 15)
        tx.execute(f"INSERT INTO plan_versions ({_COLUMNS}, created_at) VALUES ({marks})", (*values, at))
        return read_plan(tx, plan.id, version)

    return database.transact(insert, durable=True)


def list_plans(database: Database) -> list[Plan]:
    """Every version of every plan."""
    query = f"SELECT {_COLUMNS} FROM plan_versions ORDER BY plan_id, version"
    return database.transact(lambda tx: [_plan(row) for row in tx.rows(query)])


def read_plan(tx: Transaction, plan_id: str, version: int | None = None) -> Plan:
    """A version of a plan, the newest where none is named. Raises NotFound."""
    query = f"SELECT {_COLUMNS} FROM plan_versions WHERE plan_id = ?"
    if version is None:
        row = tx.row(query + " ORDER BY version DESC LIMIT 1", (plan_id,))
    else:
        row = tx.row(query + " AND version = ?", (plan_id, version))
    if row is None:
        raise NotFound(f"there is no plan {plan_id[:80]!r}; `musespark plan list` shows them")
    return _plan(row)


def _plan(row: tuple[Any, ...]) -> Plan:
    values = [json.loads(value) if index == _LIMITS else value for index, value in enumerate(row)]
    return Plan(*values)


def _check(plan: Plan) -> str:
    """Raises InvalidRequest for what can't be; returns the limits as JSON."""
    if re.fullmatch("[a-z0-9][a-z0-9_-]{0,63}", plan.id) is None or plan.id == NO_PLAN.id:
        raise InvalidRequest(f"the plan's id {plan.id[:80]!r} must be like starter-2026, and not none", param="id")
    if not 1 <= len(plan.name) <= 200 or not plan.name.isprintable():
        raise InvalidRequest("a plan's name has 1 to 200 printable characters", param="name")
    for name, choice in (("kind", Kind), ("overage", Overage), ("outage", Outage)):
        if getattr(plan, name) not in get_args(choice):
            raise InvalidRequest(f"{name} is one of {', '.join(get_args(choice))}", param=name)
    check_currency(plan.currency)
    for name in _AMOUNTS:
        check_amount(name, getattr(plan, name), MAX_AMOUNT, "nano-units")
    if (plan.overage == "bill") != (plan.overage_limit_nano > 0):
        raise InvalidRequest(
            'overage_limit_nano is what overage "bill" may come to, and 0 with overage "stop"',
            param="overage_limit_nano",
        )
    if (plan.outage == "allow") != (plan.outage_bound_nano > 0):
        raise InvalidRequest(
            'outage_bound_nano is what outage "allow" may come to, and 0 with outage "refuse"',
            param="outage_bound_nano",
        )
    if (plan.kind == "trial") != (plan.trial_days is not None):
        raise InvalidRequest('trial_days belongs to plans of the kind "trial", and to them alone', param="trial_days")
    if plan.trial_days is not None and not 1 <= plan.trial_days <= LONGEST_TRIAL_DAYS:
        raise InvalidRequest(f"trial_days is from 1 to {LONGEST_TRIAL_DAYS}", param="trial_days")
    if plan.trial_days is not None and plan.monthly_fee_nano:
        raise InvalidRequest("a trial costs nothing: monthly_fee_nano must be 0", param="monthly_fee_nano")
    if plan.next_plan is not None and plan.trial_days is None:
        raise InvalidRequest("next_plan is what a trial turns into; this plan is none", param="next_plan")
    limits = json.dumps(plan.limits, allow_nan=False, sort_keys=True)
    if not isinstance(plan.limits, dict) or len(limits) > LONGEST_LIMITS:
        raise InvalidRequest(f"limits is a JSON object of at most {LONGEST_LIMITS:,} characters", param="limits")
    Limits.of_plan(plan.limits)  # a number that makes no sense must not be found by the first request
    return limits


def _check_successors(tx: Transaction, plan: Plan) -> None:
    path, following = [plan.id], plan.next_plan
    while following is not None:
        path.append(following)
        if following in path[:-1]:
            raise InvalidRequest(f"plans would follow each other in a circle: {' -> '.join(path)}", param="next_plan")
        try:
            successor = read_plan(tx, following)
        except NotFound:
            raise InvalidRequest(f"there is no plan {following[:80]!r} to follow", param="next_plan") from None
        if successor.currency != plan.currency:
            raise InvalidRequest(f"{following} is in {successor.currency}, not {plan.currency}", param="next_plan")
        following = successor.next_plan
