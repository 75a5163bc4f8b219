"""The administrative API: prices, plans, credit, spending caps and limits.

What an organisation pays is in the operator's hands, what it lets its own projects and keys spend in its own.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from musespark.accounts import credits, limits_config, plans, prices, statements, subscriptions
from musespark.accounts.limits import NO_LIMITS, Limits
from musespark.accounts.plans import Plan
from musespark.accounts.witness import Witness, owner_of
from musespark.api.admin_body import Body, actor_of, answer, identity_of, in_reach, read_body, takes
from musespark.api.deps import services_of
from musespark.errors import NotFound

router = APIRouter(prefix="/v1/admin", tags=["admin"])


class PriceBody(Body):
    """Integer nano-units of the currency per token. Kinds left out cost as much as `text_in` or `output`."""

    model: str = Field(max_length=200)
    text_in: int
    output: int
    image_in: int | None = None
    cached_in: int | None = None
    reasoning: int | None = None
    request_fee: int = 0
    currency: str = Field("USD", max_length=8)
    effective_from: int | None = None


class PlanBody(Body):
    """A new plan, or a new version of one; see docs/billing.md for what the fields mean."""

    id: str = Field(max_length=100)
    name: str = Field(max_length=400)
    kind: Literal["standard", "trial", "partner"] = "standard"
    currency: str = Field("USD", max_length=8)
    monthly_fee_nano: int = 0
    included_nano: int = 0
    overage: Literal["stop", "bill"] = "stop"
    overage_limit_nano: int = 0
    limits: dict[str, Any] = Field(default_factory=dict)
    outage: Literal["refuse", "allow"] = "refuse"
    outage_bound_nano: int = 0
    trial_days: int | None = None
    next_plan: str | None = Field(None, max_length=100)


class SubscribeBody(Body):
    plan_id: str = Field(max_length=100)


class CreditBody(Body):
    """`reference` is what it is for, such as a payment's number: the same one again adds nothing."""

    amount_nano: int
    reference: str = Field(max_length=100)
    source: Literal["top_up", "grant"] = "top_up"
    currency: str = Field("USD", max_length=8)
    expires_at: int | None = None


class CapBody(Body):
    """`monthly_nano` null takes the cap away."""

    monthly_nano: int | None


class LimitsBody(Body):
    """All limits of one subject; what is left out or null is no limit."""

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    images_per_minute: int | None = None
    images_per_day: int | None = None
    concurrent_requests: int | None = None
    context_tokens: int | None = None


@router.get("/prices")
async def list_prices(request: Request) -> Response:
    """Every version of every price; `model` in the query picks one."""
    model = request.query_params.get("model")
    return answer(await asyncio.to_thread(prices.list_prices, services_of(request).accounts.database, model))


@router.post("/prices", openapi_extra=takes(PriceBody), status_code=201)
async def set_price(request: Request) -> Response:
    """A new version, from now on or from `effective_from`; never in the past."""
    body = await read_body(request, PriceBody)
    values = body.model_dump(exclude={"model"})
    witness = _witness(request, "price.set", body.model, None, **values)
    return answer(await asyncio.to_thread(lambda: prices.set_price(witness, body.model, **values)), 201)


@router.get("/plans")
async def list_plans(request: Request) -> Response:
    return answer(await asyncio.to_thread(plans.list_plans, services_of(request).accounts.database))


@router.post("/plans", openapi_extra=takes(PlanBody), status_code=201)
async def create_plan(request: Request) -> Response:
    body = await read_body(request, PlanBody)
    witness = _witness(request, "plan.create", body.id, None, **body.model_dump(exclude={"id"}))
    return answer(await asyncio.to_thread(plans.create_plan, witness, Plan(**body.model_dump())), 201)


@router.get("/organisations/{organisation_id}/billing")
async def get_billing(request: Request, organisation_id: str) -> Response:
    """The plan, the balance with its credit, and what this month has cost so far."""
    reached, accounts = in_reach(request, organisation_id), services_of(request).accounts
    database, ledger = accounts.database, accounts.ledger
    await _exists(request, reached)

    def read() -> dict[str, Any]:
        plan = database.transact(lambda tx: statements.current_plan(tx, reached, time.time()))  # not a remembered one
        balance, spending = ledger.balance(reached), ledger.spending(reached)
        return {"plan": asdict(plan), "balance": asdict(balance), "spending": asdict(spending)}

    return answer(await asyncio.to_thread(read))


@router.put("/organisations/{organisation_id}/plan", openapi_extra=takes(SubscribeBody))
async def subscribe(request: Request, organisation_id: str) -> Response:
    """Move the organisation to a plan at once; what is unused of the old one is credited."""
    reached, body = in_reach(request, organisation_id), await read_body(request, SubscribeBody)
    witness = _witness(request, "plan.subscribe", body.plan_id, reached)
    return answer(await asyncio.to_thread(subscriptions.subscribe, witness, reached, body.plan_id))


@router.delete("/organisations/{organisation_id}/plan")
async def cancel(request: Request, organisation_id: str) -> Response:
    reached = in_reach(request, organisation_id)
    await _exists(request, reached)
    await asyncio.to_thread(subscriptions.cancel, _witness(request, "plan.cancel", reached, reached), reached)
    return answer({"organisation_id": reached, "plan": None})


@router.post("/organisations/{organisation_id}/credits", openapi_extra=takes(CreditBody), status_code=201)
async def add_credit(request: Request, organisation_id: str) -> Response:
    """Add prepaid or granted credit; `added` is false where this reference was added before."""
    reached, body = in_reach(request, organisation_id), await read_body(request, CreditBody)
    details = body.model_dump(exclude={"reference"})
    witness = _witness(request, "credit.add", body.reference, reached, **details)
    added = await asyncio.to_thread(
        lambda: credits.top_up(
            witness,
            reached,
            body.amount_nano,
            body.reference,
            expires_at=body.expires_at,
            source=body.source,
            currency=body.currency,
        )
    )
    return answer({"organisation_id": reached, "reference": body.reference, "added": added}, 201)


@router.put("/organisations/{organisation_id}/caps/{subject_id}", openapi_extra=takes(CapBody))
async def set_cap(request: Request, organisation_id: str, subject_id: str) -> Response:
    """How much the organisation, a project or a key may spend in a month (UTC)."""
    reached, body = in_reach(request, organisation_id), await read_body(request, CapBody)
    await _owns(request, reached, subject_id)
    witness = _witness(request, "cap.set", subject_id, reached, monthly_nano=body.monthly_nano)
    await asyncio.to_thread(
        witness.transact, lambda tx: statements.set_cap(tx, subject_id, body.monthly_nano, time.time())
    )
    return answer({"subject_id": subject_id, "monthly_nano": body.monthly_nano})


@router.get("/organisations/{organisation_id}/limits/{subject_id}")
async def get_limits(request: Request, organisation_id: str, subject_id: str) -> Response:
    reached, database = in_reach(request, organisation_id), services_of(request).accounts.database
    await _owns(request, reached, subject_id)
    found = await asyncio.to_thread(limits_config.read_limits, database, [subject_id])
    return answer({"subject_id": subject_id, **asdict(found.get(subject_id, NO_LIMITS))})


@router.put("/organisations/{organisation_id}/limits/{subject_id}", openapi_extra=takes(LimitsBody))
async def set_limits(request: Request, organisation_id: str, subject_id: str) -> Response:
    """Replace the limits of a project or a key; those of the whole organisation are the operator's to set."""
    reached, body = in_reach(request, organisation_id), await read_body(request, LimitsBody)
    await _owns(request, reached, subject_id)
    if subject_id == reached:
        identity_of(request).require("organisations.write")
    limits = Limits(**body.model_dump())
    witness = _witness(request, "limits.set", subject_id, reached, **body.model_dump(exclude_none=True))
    await asyncio.to_thread(limits_config.set_limits, witness, subject_id, limits)
    return answer({"subject_id": subject_id, **asdict(limits)})


def _witness(request: Request, action: str, target: str, organisation_id: str | None, **details: Any) -> Witness:
    database = services_of(request).accounts.database
    return Witness(database, actor_of(request), action, target, organisation_id=organisation_id, **details)


async def _owns(request: Request, organisation_id: str, subject_id: str) -> None:
    """Raises NotFound for a subject of another organisation, as if there were none."""
    if await asyncio.to_thread(owner_of, services_of(request).accounts.database, subject_id) != organisation_id:
        raise NotFound(f"there is no organisation, project or key {subject_id[:80]!r}")


async def _exists(request: Request, organisation_id: str) -> None:
    await _owns(request, organisation_id, organisation_id)
