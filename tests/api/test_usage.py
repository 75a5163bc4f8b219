"""GET /v1/usage: sums that equal what was billed, by time and by whatever one asks for, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.customer import Customer, price_list
from tests.api.world import MODEL, World, running_world


@pytest.fixture(scope="module")
def priced_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("usage") / "state") as world:
        price_list(world.accounts, MODEL)
        yield world


@pytest.fixture
def customer(priced_world: World) -> Customer:
    return Customer(priced_world.accounts, priced_world.url, MODEL)


@pytest.mark.parametrize("bucket", ["hour", "day"])
def test_the_sums_are_those_of_the_answers_and_of_the_ledger(customer: Customer, bucket: str) -> None:
    usages = [customer.ask(f"think: hm; say: {text}").json()["usage"] for text in ("a", "bb", "ccc")]
    report = customer.get("/v1/usage", bucket=bucket).json()
    total = {name: sum(row[name] for row in report["data"]) for name in ("requests", "total_tokens", "amount_nano")}
    assert total == {
        "requests": 3,
        "total_tokens": sum(usage["total_tokens"] for usage in usages),
        "amount_nano": customer.spent,
    }
    reasoning = sum(usage["completion_tokens_details"]["reasoning_tokens"] for usage in usages)
    assert sum(row["reasoning_tokens"] for row in report["data"]) == reasoning > 0
    seconds = {"hour": 3600, "day": 86_400}[bucket]
    assert all(row["end"] - row["start"] == seconds and row["start"] % seconds == 0 for row in report["data"])


def test_usage_is_told_apart_by_model_project_and_key(customer: Customer) -> None:
    new = customer.accounts.create_key("second", organisation_id=customer.organisation_id)
    customer.ask("say: a")
    first_headers, customer.headers = customer.headers, {"authorization": f"Bearer {new.secret}"}
    customer.ask("say: b")
    customer.ask("say: c")
    rows = customer.get("/v1/usage", group_by="model,project,key").json()["data"]
    requests = {row["key_id"]: row["requests"] for row in rows}
    assert requests == {customer.key_id: 1, new.key.id: 2}
    assert {row["model"] for row in rows} == {MODEL}
    customer.headers = first_headers
    [row] = customer.get("/v1/usage", key=new.key.id).json()["data"]
    assert row["requests"] == 2
    assert customer.get("/v1/usage", model="another").json()["data"] == []


def test_csv_has_the_same_rows(customer: Customer) -> None:
    customer.ask("say: a")
    answer = customer.get("/v1/usage", group_by="model", format="csv")
    assert answer.headers["content-type"].startswith("text/csv")
    [row] = csv.DictReader(io.StringIO(answer.text))
    [same] = customer.get("/v1/usage", group_by="model").json()["data"]
    assert {name: int(row[name]) for name in ("requests", "total_tokens", "amount_nano")} == {
        name: same[name] for name in ("requests", "total_tokens", "amount_nano")
    }
    assert row["start"] == time.strftime("%Y-%m-%dT00:00:00Z", time.gmtime(same["start"]))


def test_nobody_sees_the_usage_of_others(customer: Customer, priced_world: World) -> None:
    customer.ask("say: a")
    stranger = Customer(priced_world.accounts, priced_world.url, MODEL)
    assert stranger.get("/v1/usage").json()["data"] == []
    assert stranger.get("/v1/usage", key=customer.key_id).json()["data"] == []


def test_times_may_be_seconds_or_iso(customer: Customer) -> None:
    customer.ask("say: a")
    now = int(time.time())
    for start in (str(now - 3600), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - 3600))):
        assert customer.get("/v1/usage", bucket="hour", start=start).json()["data"][0]["requests"] == 1
    assert customer.get("/v1/usage", start="2020-01-01", end="2020-01-31").json()["data"] == []


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"bucket": "week"}, "bucket"),
        ({"format": "xml"}, "format"),
        ({"group_by": "model,user"}, "group_by"),
        ({"start": "yesterday"}, "start"),
        ({"end": "1e9"}, "end"),
        ({"start": "2026-02-02", "end": "2026-02-01"}, "start"),
        ({"bucket": "hour", "start": "2020-01-01", "end": "2026-01-01"}, "start"),
        ({"start": "9" * 13, "end": "9" * 13}, "start"),
        ({"organisation": "org_1"}, "organisation"),
        ({"start": ["2026-01-01", "2026-01-02"]}, "start"),
        ({"group_by": "key_id; DROP TABLE usage_rollups"}, "group_by"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(customer: Customer, parameters: dict[str, Any], param: str) -> None:
    refused = customer.get("/v1/usage", **parameters)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("name", ["model", "project", "key"])
def test_sql_in_a_filter_is_text(customer: Customer, name: str) -> None:
    customer.ask("say: a")
    assert customer.get("/v1/usage", **{name: "' OR 1=1 --"}).json()["data"] == []
