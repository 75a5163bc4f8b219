"""Prices, plans, credit, caps and limits over HTTP: who may set what, and that every act is in the audit log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from musespark.accounts import organisations
from musespark.accounts.actor import machine
from tests.api.test_admin import Caller, key_caller
from tests.api.world import World


@pytest.fixture
def organisation(world: World) -> str:
    return organisations.create_organisation(world.accounts.database, machine(), "Acme").id


@pytest.fixture
def operator(world: World) -> Iterator[Caller]:
    with key_caller(world, None, access="operator") as found:
        yield found


@pytest.fixture
def admin(world: World, organisation: str) -> Iterator[Caller]:
    with key_caller(world, organisation, access="admin") as found:
        yield found


def at(organisation: str, path: str) -> str:
    return f"/v1/admin/organisations/{organisation}{path}"


def last_event(operator: Caller) -> dict[str, Any]:
    return operator("GET", "/v1/admin/audit?limit=1").json()["data"][0]


def test_a_price_has_versions_and_each_is_an_act(operator: Caller) -> None:
    model = f"priced-{time.time_ns()}"
    first = operator("POST", "/v1/admin/prices", {"model": model, "text_in": 1250, "output": 4250, "cached_in": 150})
    assert first.status_code == 201
    assert (first.json()["version"], first.json()["image_in"], first.json()["cached_in"]) == (1, 1250, 150)
    later = {"model": model, "text_in": 1000, "output": 4000, "effective_from": int(time.time()) + 86_400}
    assert operator("POST", "/v1/admin/prices", later).json()["version"] == 2
    listed = operator("GET", f"/v1/admin/prices?model={model}").json()["data"]
    assert [price["text_in"] for price in listed] == [1250, 1000]
    event = last_event(operator)
    assert (event["action"], event["target"], event["details"]["text_in"]) == ("price.set", model, 1000)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"text_in": -1}, "text_in"),
        ({"output": 2**63}, "output"),
        ({"effective_from": 1}, "effective_from"),
        ({"currency": "gold"}, "currency"),
        ({"text_in": 1.5}, "text_in"),
    ],
)
def test_an_impossible_price_is_refused_and_leaves_no_event(
    operator: Caller, change: dict[str, Any], field: str
) -> None:
    before = last_event(operator)
    refused = operator("POST", "/v1/admin/prices", {"model": "m", "text_in": 1, "output": 1} | change)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
    assert last_event(operator) == before


def test_an_organisation_gets_a_plan_and_credit_once(operator: Caller, admin: Caller, organisation: str) -> None:
    plan = {"id": f"starter-{time.time_ns()}", "name": "Starter", "monthly_fee_nano": 5, "included_nano": 7}
    assert operator("POST", "/v1/admin/plans", plan).status_code == 201
    assert plan["id"] in {row["id"] for row in operator("GET", "/v1/admin/plans").json()["data"]}
    assert operator("PUT", at(organisation, "/plan"), {"plan_id": plan["id"]}).json()["included_nano"] == 7
    credit = {"amount_nano": 1000, "reference": "payment-1"}
    assert operator("POST", at(organisation, "/credits"), credit).json()["added"] is True
    assert last_event(operator)["action"] == "credit.add"
    event = last_event(operator)
    assert operator("POST", at(organisation, "/credits"), credit).json()["added"] is False
    assert last_event(operator) == event
    billing = admin("GET", at(organisation, "/billing")).json()
    assert billing["plan"]["id"] == plan["id"]
    assert billing["balance"]["available_nano"] == 1007
    assert operator("DELETE", at(organisation, "/plan")).status_code == 200
    assert admin("GET", at(organisation, "/billing")).json()["plan"]["id"] == "none"


def test_a_customer_can_not_give_itself_a_plan_credit_or_higher_limits(admin: Caller, organisation: str) -> None:
    for method, path, body in (
        ("PUT", "/plan", {"plan_id": "partner"}),
        ("POST", "/credits", {"amount_nano": 1, "reference": "x"}),
        ("PUT", f"/limits/{organisation}", {"requests_per_minute": 10**6}),
    ):
        refused = admin(method, at(organisation, path), body)
        assert refused.json()["error"]["code"] == "insufficient_scope", path


def test_a_customer_caps_and_limits_its_own_projects_and_keys(world: World, admin: Caller, organisation: str) -> None:
    project = admin("GET", at(organisation, "/projects")).json()["data"][0]["id"]
    key = world.accounts.create_key("mine", organisation_id=organisation).key.id
    for subject in (project, key):
        assert admin("PUT", at(organisation, f"/caps/{subject}"), {"monthly_nano": 500}).status_code == 200
        assert world.accounts.ledger.spending(subject).cap_nano == 500
        assert admin("PUT", at(organisation, f"/limits/{subject}"), {"requests_per_minute": 3}).status_code == 200
        assert admin("GET", at(organisation, f"/limits/{subject}")).json()["requests_per_minute"] == 3
    admin("PUT", at(organisation, f"/caps/{key}"), {"monthly_nano": None})
    assert world.accounts.ledger.spending(key).cap_nano is None
    actions = {event["action"] for event in admin("GET", at(organisation, "/audit")).json()["data"]}
    assert {"cap.set", "limits.set"} <= actions


def test_subjects_of_others_do_not_exist(world: World, admin: Caller, organisation: str) -> None:
    other = organisations.create_organisation(world.accounts.database, machine(), "Other").id
    foreign = world.accounts.create_key("theirs", organisation_id=other).key
    for subject in (other, foreign.project_id, foreign.id, "key_none", "nothing", "'; DROP TABLE caps; --"):
        for path, body in ((f"/caps/{subject}", {"monthly_nano": 0}), (f"/limits/{subject}", {})):
            assert admin("PUT", at(organisation, path), body).status_code == 404, subject


def test_an_operator_limits_a_whole_organisation(operator: Caller, organisation: str) -> None:
    body = {"requests_per_minute": 0, "tokens_per_day": 10}
    assert operator("PUT", at(organisation, f"/limits/{organisation}"), body).status_code == 200
    refused = operator("PUT", at(organisation, f"/limits/{organisation}"), {"tokens_per_day": -1})
    assert refused.json()["error"]["param"] == "tokens_per_day"
