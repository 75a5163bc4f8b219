"""Prices, plans, subscriptions and credit: what is refused, and who pays what when. Amounts are computed by hand."""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest

from musespark.accounts.credits import top_up
from musespark.accounts.database import Database
from musespark.accounts.plans import Plan, create_plan, list_plans
from musespark.accounts.prices import list_prices, set_price
from musespark.accounts.subscriptions import cancel, month_after, subscribe
from musespark.errors import (
    CreditBalanceExhausted,
    InvalidRequest,
    NotFound,
    OrganizationSpendLimitExceeded,
    PlanRefused,
)
from tests.accounts.books import NOW, OUT, Books, used

DAY = 86_400
STARTER = Plan("starter", name="Starter", monthly_fee_nano=3_000_000, included_nano=2_000_000)


def utc(*moment: int) -> int:
    return int(datetime.datetime(*moment, tzinfo=datetime.UTC).timestamp())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text_in", -1),
        ("output", 10**9 + 1),
        ("cached_in", 2**63),
        ("reasoning", 0.5),
        ("request_fee", -1),
        ("request_fee", 10**15 + 1),
        ("currency", "usd"),
        ("effective_from", NOW - 1),
        ("effective_from", 2**41),
    ],
)
def test_a_price_that_can_not_be_is_refused_by_its_field(database: Database, field: str, value: object) -> None:
    values = {"text_in": 1, "output": 1, field: value}
    with pytest.raises(InvalidRequest) as caught:
        set_price(database, "m", **values, now=NOW)  # type: ignore[arg-type]
    assert caught.value.param == field
    assert list_prices(database) == []


def test_the_limits_of_prices_are_allowed(database: Database) -> None:
    price = set_price(database, "m", text_in=0, output=10**9, request_fee=10**15, effective_from=NOW, now=NOW)
    assert list_prices(database, "m") == [price]


def test_a_new_price_counts_from_its_moment_and_an_old_request_keeps_its_own(books: Books) -> None:
    books.credit(10**9)
    hold = books.open("r1")
    dearer = set_price(books.database, "muse-spark", text_in=9, output=9, effective_from=NOW + 10, now=NOW)
    books.ledger._price_book.forget()
    assert books.ledger.price("muse-spark", NOW + 9).version == books.price.version
    assert books.ledger.price("muse-spark", NOW + 10) == dearer
    assert books.ledger.settle(hold, used(1), now=NOW + 20).amount_nano == 100 * 1250 + OUT
    with pytest.raises(InvalidRequest, match="begins at"):
        set_price(books.database, "muse-spark", text_in=1, output=1, effective_from=NOW + 10, now=NOW)
    books.check()


def test_an_organisation_in_another_currency_needs_a_price_in_it(books: Books) -> None:
    top_up(books.database, "org_2", 10**6, "start", currency="EUR", now=NOW)
    with pytest.raises(PlanRefused, match="no price in EUR"):
        books.ledger.price("muse-spark", NOW, organisation_id="org_2")
    with pytest.raises(InvalidRequest, match="currency is EUR, not USD"):
        top_up(books.database, "org_2", 10**6, "more", now=NOW)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"id": "No Spaces"}, "id"),
        ({"id": "x'; DROP TABLE plan_versions; --"}, "id"),
        ({"monthly_fee_nano": -1}, "monthly_fee_nano"),
        ({"included_nano": 10**15 + 1}, "included_nano"),
        ({"overage": "bill"}, "overage_limit_nano"),
        ({"overage_limit_nano": 5}, "overage_limit_nano"),
        ({"outage": "allow"}, "outage_bound_nano"),
        ({"kind": "trial"}, "trial_days"),
        ({"kind": "gold"}, "kind"),
        ({"next_plan": "starter"}, "next_plan"),
        ({"limits": {"x": "y" * 10_001}}, "limits"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_its_field(
    database: Database, changes: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        create_plan(database, replace(STARTER, **changes))  # type: ignore[arg-type]
    assert caught.value.param == field


def test_plans_that_follow_each_other_in_a_circle_are_refused(database: Database) -> None:
    first = Plan("first", name="First", kind="trial", trial_days=7)
    create_plan(database, first)
    create_plan(database, Plan("second", name="Second", kind="trial", trial_days=7, next_plan="first"))
    with pytest.raises(InvalidRequest, match="first -> second -> first"):
        create_plan(database, replace(first, next_plan="second"))
    with pytest.raises(InvalidRequest, match="no plan 'third'"):
        create_plan(database, replace(first, next_plan="third"))
    assert [(plan.id, plan.version) for plan in list_plans(database)] == [("first", 1), ("second", 1)]


def test_months_end_where_the_calendar_says_and_do_not_drift() -> None:
    start = utc(2027, 1, 31, 12, 30)
    ends = [month_after(start, months) for months in (1, 2, 3, 13)]
    assert ends == [
        utc(2027, 2, 28, 12, 30),
        utc(2027, 3, 31, 12, 30),
        utc(2027, 4, 30, 12, 30),
        utc(2028, 2, 29, 12, 30),
    ]
    # The clocks of Europe and America change in between; UTC has no such thing.
    assert month_after(utc(2027, 3, 14, 2, 30), 1) - utc(2027, 3, 14, 2, 30) == 31 * DAY


def test_a_period_charges_the_fee_and_brings_credit_that_ends_with_it(books: Books) -> None:
    create_plan(books.database, STARTER)
    subscribe(books.database, "org_1", "starter", now=NOW)
    hold = books.open("r1")
    books.ledger.settle(hold, used(64))
    spent = 100 * 1250 + 64 * OUT
    assert books.wallet() == {
        "wallet": 2_000_000 - spent, "revenue": 3_000_000 + spent, "receivable": -3_000_000, "granted": -2_000_000
    }  # fmt: skip
    later = month_after(NOW, 2) + 5
    assert books.ledger.balance("org_1", later).available_nano == 2_000_000  # two periods later, and only one lot
    assert books.wallet()["expired"] == 2_000_000 - spent + 2_000_000
    assert books.wallet()["receivable"] == -9_000_000
    books.check()


def test_overage_is_owed_up_to_its_limit_and_billed_at_the_end_of_the_period(books: Books) -> None:
    create_plan(books.database, replace(STARTER, included_nano=0, overage="bill", overage_limit_nano=400_000))
    subscribe(books.database, "org_1", "starter", now=NOW)
    books.ledger.settle(books.open("r1"), used(60))
    spent = 100 * 1250 + 60 * OUT
    assert books.ledger.balance("org_1", NOW).owed_nano == 3_000_000 + spent
    with pytest.raises(OrganizationSpendLimitExceeded, match="plan's limit of overage"):
        books.open("r2")
    books.ledger.balance("org_1", month_after(NOW, 1))
    assert books.wallet() == {"revenue": 6_000_000 + spent, "receivable": -(6_000_000 + spent)}
    books.check()


def test_changing_the_plan_credits_the_lesser_of_time_and_included_credit_left(books: Books) -> None:
    create_plan(books.database, STARTER)
    create_plan(books.database, replace(STARTER, id="big", monthly_fee_nano=9_000_000, included_nano=0))
    subscribe(books.database, "org_1", "starter", now=NOW)
    books.ledger.settle(books.open("r1", text_in=0), used(235, text_in=0))  # 998,750 of the 2,000,000
    subscribe(books.database, "org_1", "big", now=NOW + 3 * DAY)
    credit = 3_000_000 * (2_000_000 - 235 * OUT) // 2_000_000  # less than 27 of 30 days would give
    assert books.wallet()["receivable"] == -(3_000_000 - credit + 9_000_000)
    cancel(books.database, "org_1", now=NOW + 18 * DAY)
    assert books.wallet()["receivable"] == -(3_000_000 - credit + 4_500_000)  # half of a month of 30 days
    assert books.ledger.plan("org_1", NOW + 18 * DAY).id == "none"
    books.check()


def test_a_trial_ends_in_the_plan_that_follows_it_and_is_given_once(books: Books) -> None:
    create_plan(books.database, STARTER)
    trial = Plan("trial", name="Trial", kind="trial", trial_days=14, included_nano=500_000, next_plan="starter")
    create_plan(books.database, trial)
    subscribe(books.database, "org_1", "trial", now=NOW)
    assert books.ledger.balance("org_1", NOW + 14 * DAY - 1).available_nano == 500_000
    assert books.ledger.plan("org_1", NOW + 14 * DAY).id == "starter"
    assert books.ledger.balance("org_1", NOW + 14 * DAY).available_nano == 2_000_000
    with pytest.raises(PlanRefused, match="given once"):
        subscribe(books.database, "org_1", "trial", now=NOW + 15 * DAY)
    books.check()


def test_credit_that_ends_first_is_spent_first_and_the_rest_runs_out(books: Books) -> None:
    books.credit(300_000, "forever")
    books.credit(200_000, "soon", expires_at=NOW + DAY)
    books.ledger.settle(books.open("r1", text_in=0, output=20), used(20, text_in=0))  # 85,000
    assert {c.source + c.id[-5:]: c.remaining_nano for c in books.ledger.balance("org_1", NOW).credits} == {
        "top_up/soon": 115_000, "top_uprever": 300_000
    }  # fmt: skip
    assert books.ledger.balance("org_1", NOW + DAY).available_nano == 300_000
    assert books.wallet()["expired"] == 115_000
    books.check()


def test_credit_that_is_held_when_it_ends_may_still_be_spent_but_not_come_back(books: Books) -> None:
    books.credit(200_000, "soon", expires_at=NOW + DAY)
    hold = books.open("r1", text_in=0, output=40)  # 170,000 of it
    assert books.ledger.balance("org_1", NOW + DAY).available_nano == 0
    assert books.wallet()["expired"] == 30_000
    books.ledger.settle(hold, used(10, text_in=0), now=NOW + DAY)
    with pytest.raises(CreditBalanceExhausted):
        books.open("r2", text_in=0, output=1, now=NOW + DAY)
    assert books.ledger.balance("org_1", NOW + DAY).credits == []
    assert books.wallet()["expired"] == 30_000 + 170_000 - 42_500
    books.check()


def test_credit_pays_what_is_owed_first(books: Books) -> None:
    create_plan(books.database, replace(STARTER, included_nano=0, overage="bill", overage_limit_nano=400_000))
    subscribe(books.database, "org_1", "starter", now=NOW)
    books.ledger.settle(books.open("r1", text_in=0, output=20), used(20, text_in=0))
    books.credit(100_000)
    (credit,) = books.ledger.balance("org_1", NOW).credits
    assert credit.remaining_nano == 15_000
    books.check()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"amount": 0}, "amount"),
        ({"amount": -1}, "amount"),
        ({"amount": 10**15 + 1}, "amount"),
        ({"expires_at": NOW}, "expires_at"),
        ({"reference": ""}, "reference"),
        ({"reference": "x" * 65}, "reference"),
        ({"currency": "dollars"}, "currency"),
    ],
)
def test_credit_that_can_not_be_is_refused_by_its_field(books: Books, changes: dict[str, object], field: str) -> None:
    arguments: dict[str, object] = {"amount": 1, "reference": "x", "now": NOW} | changes
    with pytest.raises(InvalidRequest) as caught:
        top_up(books.database, "org_1", **arguments)  # type: ignore[arg-type]
    assert caught.value.param == field


def test_what_does_not_exist_is_named(books: Books) -> None:
    with pytest.raises(NotFound, match="no organisation"):
        top_up(books.database, "org_x", 1, "x")
    with pytest.raises(NotFound, match="no plan"):
        subscribe(books.database, "org_1", "missing")
