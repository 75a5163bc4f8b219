"""What is charged, row by row as docs/billing.md has it, and how holds grow. Amounts are computed by hand."""

from __future__ import annotations

import pytest

from musespark.accounts.holds import Hold
from musespark.accounts.lines import Lines
from musespark.accounts.prices import PriceSnapshot, set_price
from musespark.accounts.reconcile import verify
from musespark.errors import (
    CreditBalanceExhausted,
    KeySpendLimitExceeded,
    LedgerConflict,
    NotFound,
    OrganizationSpendLimitExceeded,
    ProjectSpendLimitExceeded,
    SpendLimit,
)
from tests.accounts.books import NOW, OUT, Books, used

INPUT = 100 * 1250
FIRST = INPUT + 64 * OUT  # what a request of 100 tokens and a first step of 64 holds


def test_a_completed_request_pays_each_kind_of_token_at_its_price(books: Books) -> None:
    books.credit(10**9)
    prices = {"text_in": 1250, "image_in": 1000, "cached_in": 150, "output": 4250, "reasoning": 4000}
    books.price = set_price(books.database, "thinker", **prices, now=NOW)
    hold = books.open("r1", text_in=1000)
    lines = Lines(text_in=300, image_in=50, cached_in=650, output=40, reasoning=20)
    settlement = books.ledger.settle(hold, lines, now=NOW)
    amount = 300 * 1250 + 50 * 1000 + 650 * 150 + 40 * 4250 + 20 * 4000
    assert settlement.amount_nano == amount == 772_500
    assert books.wallet() == {"wallet": 10**9 - amount, "revenue": amount, "funding": -(10**9)}
    books.check()


def test_an_aborted_stream_pays_for_what_was_generated(books: Books) -> None:
    books.credit(10**9)
    assert books.ledger.settle(books.open("r1"), used(7), outcome="aborted").amount_nano == INPUT + 7 * OUT
    assert books.ledger.explain("r1")[0]["outcome"] == "aborted"


def test_a_failure_before_the_first_token_costs_nothing(books: Books) -> None:
    books.credit(10**9)
    books.ledger.void(books.open("r1"))
    assert books.wallet() == {"wallet": 10**9, "funding": -(10**9)}
    assert books.ledger.explain("r1")[0]["state"] == "void"
    books.check()


def test_a_failure_after_output_pays_for_the_output(books: Books) -> None:
    books.credit(10**9)
    assert books.ledger.settle(books.open("r1"), used(3), outcome="failed").amount_nano == INPUT + 3 * OUT


def test_a_refused_request_costs_nothing_and_holds_nothing(books: Books) -> None:
    books.credit(INPUT + OUT - 1)
    with pytest.raises(CreditBalanceExhausted, match=r"leaves 129,249 nano-units and 129,250 are needed") as caught:
        books.open("r1", output=1)
    assert not caught.value.held_by_others
    assert books.wallet() == {"wallet": INPUT + OUT - 1, "funding": -(INPUT + OUT - 1)}
    with pytest.raises(NotFound):
        books.ledger.explain("r1")


def test_the_last_nano_dollar_can_be_spent_and_not_one_more(books: Books) -> None:
    books.credit(INPUT + OUT)
    hold = books.open("r1")
    assert (hold.granted_output, hold.final) == (1, True)
    assert books.ledger.settle(hold, used(1)).amount_nano == INPUT + OUT
    with pytest.raises(CreditBalanceExhausted):
        books.open("r2", text_in=0, output=1)
    books.check()


def test_a_request_fee_is_charged_once_and_not_to_a_failure(books: Books) -> None:
    books.credit(10**9)
    books.price = PriceSnapshot("free-but-fee", 0, request_fee=500)
    assert books.ledger.settle(books.open("r1"), used(9)).amount_nano == 500
    books.ledger.void(books.open("r2"))
    assert books.wallet()["revenue"] == 500


def test_a_fallback_attempt_has_a_hold_of_its_own(books: Books) -> None:
    books.credit(10**9)
    first = books.open("r1")
    second = books.ledger.open_hold("r1", "org_1", "proj_a", "key_a", books.price, text_in=100, output=64, attempt=2)
    books.ledger.void(first)
    books.ledger.settle(second, used(5))
    assert [attempt["state"] for attempt in books.ledger.explain("r1")] == ["void", "posted"]
    books.check()


def test_nothing_configured_means_free_and_counted(books: Books) -> None:
    price = books.ledger.price("model-without-a-price-list")
    hold = books.ledger.open_hold("r1", "org_2", "proj_x", "key_x", price, text_in=10**6, output=10**6)
    assert books.ledger.settle(hold, used(10**6)).amount_nano == 0
    assert books.ledger.explain("r1")[0]["lines"][3]["tokens"] == 10**6
    books.check()


def test_a_hold_grows_in_steps_and_gives_back_what_turned_out_cheaper(books: Books) -> None:
    books.credit(10**9)
    hold = books.open("r1")
    assert books.wallet()["held"] == FIRST
    grant = books.ledger.extend(hold, used(40, text_in=20, cached_in=80), 64)
    assert (grant.granted_output, grant.final, grant.waiting) == (128, False, False)
    # 80 cached tokens cost 150 instead of 1250; the 40 are spent, 88 more are paid for.
    assert books.wallet()["held"] == 20 * 1250 + 80 * 150 + 128 * OUT
    books.check()


def test_the_last_step_is_exactly_what_the_money_pays_for(books: Books) -> None:
    books.credit(FIRST + 10 * OUT + OUT - 1)
    hold = books.open("r1")
    grant = books.ledger.extend(hold, used(60), 64)
    assert (grant.granted_output, grant.final, grant.code) == (74, True, "credit_balance_exhausted")
    assert books.ledger.settle(hold, used(74), outcome="budget").amount_nano == INPUT + 74 * OUT
    assert books.wallet()["wallet"] == OUT - 1
    books.check()


def test_money_held_by_others_makes_a_request_wait_and_a_release_lets_it_go_on(books: Books) -> None:
    books.credit(2 * FIRST)
    freed: list[str] = []
    books.ledger.subscribe(freed.append)
    one, two = books.open("r1"), books.open("r2")
    assert books.ledger.extend(one, used(64), 64).waiting
    with pytest.raises(CreditBalanceExhausted) as caught:
        books.open("r3")
    assert caught.value.held_by_others
    books.ledger.settle(two, used(14))
    assert freed == ["org_1"]
    grant = books.ledger.extend(one, used(64), 64)
    assert (grant.granted_output, grant.final) == (64 + 50, True)
    books.check()


def test_a_request_whose_thinking_is_cheaper_waits_for_what_its_own_tokens_give_back(books: Books) -> None:
    books.price = set_price(books.database, "thinker", text_in=0, output=4000, reasoning=1000, now=NOW)
    books.credit(64 * 4000)
    hold = books.open("r1")
    assert not books.ledger.extend(hold, used(0, reasoning=60), 64).final
    grant = books.ledger.extend(hold, used(0, reasoning=64), 64)
    assert grant.granted_output == 64 + 48  # three quarters of the 64 came back
    books.ledger.settle(hold, used(0, reasoning=112))
    books.check()


def test_when_all_wait_for_each_other_all_are_told_to_stop(books: Books) -> None:
    books.credit(2 * FIRST)
    one, two = books.open("r1"), books.open("r2")
    assert books.ledger.extend(one, used(64), 64).waiting
    assert books.ledger.extend(two, used(64), 64).final
    assert books.ledger.extend(one, used(64), 64).final
    books.check()


def test_who_asks_before_its_grant_is_used_up_is_not_taken_for_waiting(books: Books) -> None:
    books.credit(2 * FIRST)
    one, two = books.open("r1"), books.open("r2")
    assert books.ledger.extend(one, used(32), 64).waiting  # it may still end before its 64
    assert books.ledger.extend(two, used(64), 64).waiting


def test_waiting_can_be_given_up(books: Books) -> None:
    books.credit(2 * FIRST)
    one, _two = books.open("r1"), books.open("r2")
    grant = books.ledger.extend(one, used(64), 64, give_up=True)
    assert (grant.granted_output, grant.final, grant.code) == (64, True, "credit_balance_exhausted")


@pytest.mark.parametrize(
    ("scope", "error"),
    [
        ("org_1", OrganizationSpendLimitExceeded),
        ("proj_a", ProjectSpendLimitExceeded),
        ("key_a", KeySpendLimitExceeded),
    ],
)
def test_a_monthly_cap_names_itself_and_blocks_only_its_own(books: Books, scope: str, error: type[SpendLimit]) -> None:
    books.credit(10**9)
    books.ledger.set_cap(scope, FIRST)
    hold = books.open("r1")
    grant = books.ledger.extend(hold, used(64), 64)
    assert (grant.granted_output, grant.final, grant.code) == (64, True, error.code)
    books.ledger.settle(hold, used(64))
    spending = books.ledger.spending(scope, NOW)
    assert (spending.period, spending.posted_nano, spending.cap_nano) == ("2026-11", FIRST, FIRST)
    with pytest.raises(error):
        books.open("r2")
    if scope != "org_1":
        books.ledger.void(books.open("r3", key="key_b"))
    books.ledger.set_cap(scope, None)
    books.ledger.void(books.open("r4"))
    books.check()


def test_a_cap_lowered_below_what_is_spent_stops_and_breaks_nothing(books: Books) -> None:
    books.credit(10**9)
    one, two = books.open("r1"), books.open("r2")
    books.ledger.set_cap("proj_a", 10)
    assert books.ledger.extend(one, used(32), 64).waiting  # the other one's money may come free, for all it knows
    books.ledger.settle(one, used(40))
    books.ledger.void(two)
    with pytest.raises(ProjectSpendLimitExceeded, match="leaves 0 nano-units"):
        books.open("r3", text_in=0, output=1)
    books.check()


def test_caps_of_things_that_do_not_exist_are_refused(books: Books) -> None:
    for scope in ("org_missing", "nonsense", "proj_' OR 1=1 --"):
        with pytest.raises(NotFound):
            books.ledger.set_cap(scope, 1)


def test_doing_anything_twice_is_the_same_as_once(books: Books) -> None:
    books.credit(10**9)
    books.credit(10**9)  # the same reference
    hold = books.open("r1")
    assert books.open("r1") == hold
    first = books.ledger.settle(hold, used(9))
    assert books.ledger.settle(hold, used(9)) == first
    void = books.open("r2")
    books.ledger.void(void)
    books.ledger.void(void)
    assert books.wallet() == {
        "wallet": 10**9 - first.amount_nano, "revenue": first.amount_nano, "funding": -(10**9)
    }  # fmt: skip
    books.check()


def test_a_contradiction_is_an_error_and_changes_nothing(books: Books) -> None:
    books.credit(10**9)
    posted, void = books.open("r1"), books.open("r2")
    books.ledger.settle(posted, used(9))
    books.ledger.void(void)
    before = books.wallet()
    with pytest.raises(LedgerConflict):
        books.ledger.settle(posted, used(10))
    with pytest.raises(LedgerConflict):
        books.ledger.void(posted)
    with pytest.raises(LedgerConflict):
        books.ledger.settle(void, used(1))
    assert books.ledger.extend(posted, used(9), 64).final
    assert books.wallet() == before


def test_usage_that_shrinks_is_refused(books: Books) -> None:
    books.credit(10**9)
    hold = books.open("r1")
    books.ledger.extend(hold, used(30), 64)
    with pytest.raises(LedgerConflict):
        books.ledger.extend(hold, used(29), 64)


def test_a_hold_whose_owner_died_is_billed_what_it_last_reported(books: Books) -> None:
    books.credit(10**9)
    silent, told = books.open("r1"), books.open("r2")
    books.ledger.extend(told, used(30), 64, now=NOW)
    del silent, told
    books.ledger.maintain(NOW + 299)
    assert books.ledger.explain("r1")[0]["state"] == "open"
    books.ledger.maintain(NOW + 300)
    assert [books.ledger.explain(id)[0]["state"] for id in ("r1", "r2")] == ["expired", "expired"]
    assert books.wallet()["revenue"] == INPUT + 30 * OUT
    books.check()


def test_usage_that_comes_after_the_expiry_is_billed_in_full_and_once(books: Books) -> None:
    books.credit(10**9)
    hold = books.open("r1")
    books.ledger.extend(hold, used(30), 64, now=NOW)
    id, copy = hold.id, (hold.scope, hold.price)
    del hold
    books.ledger.maintain(NOW + 10_000)
    late = Hold(id, "r1", 1, *copy, 128, False, NOW)
    for _ in range(2):
        assert books.ledger.settle(late, used(50)).amount_nano == (INPUT + 50 * OUT)
    assert books.wallet()["revenue"] == INPUT + 50 * OUT
    books.check()


def test_usage_after_the_expiry_is_final_though_it_adds_nothing(books: Books) -> None:
    books.credit(10**9)
    hold = books.open("r1")
    books.ledger.extend(hold, used(30), 64, now=NOW)
    late = Hold(hold.id, "r1", 1, hold.scope, hold.price, 128, False, NOW)
    del hold
    books.ledger.maintain(NOW + 10_000)
    for _ in range(2):
        assert books.ledger.settle(late, used(30)).amount_nano == INPUT + 30 * OUT
    with pytest.raises(LedgerConflict):
        books.ledger.settle(late, used(31))
    report = verify(books.database, books.state_dir / "journal")
    assert [finding.what for finding in report.findings] == ["r1/1 output"]  # the contradiction is not forgotten
    assert report.difference == 1


def test_a_request_in_flight_is_kept_alive_though_the_clock_jumps(books: Books) -> None:
    books.credit(10**9)
    hold = books.open("r1")
    books.ledger.maintain(NOW + 86_400)
    assert books.ledger.explain("r1")[0]["state"] == "open"
    assert books.ledger.settle(hold, used(64), now=NOW - 86_400).amount_nano == FIRST
    books.check()


def test_a_request_counts_in_the_month_in_which_it_began(books: Books) -> None:
    last_second = 1_796_083_199  # 2026-11-30 23:59:59 UTC
    books.credit(10**9)
    books.ledger.set_cap("org_1", FIRST)
    hold = books.open("r1", now=last_second)
    with pytest.raises(OrganizationSpendLimitExceeded):
        books.open("r2", now=last_second)
    other = books.open("r2", now=last_second + 1)
    books.ledger.settle(hold, used(64), now=last_second + 60)
    books.ledger.settle(other, used(1), now=last_second + 60)
    assert books.ledger.spending("org_1", last_second).posted_nano == FIRST
    assert books.ledger.spending("org_1", last_second + 1).posted_nano == INPUT + OUT
    books.check()


def test_another_organisation_is_not_touched(books: Books) -> None:
    books.credit(FIRST)
    books.open("r1")
    with pytest.raises(CreditBalanceExhausted) as caught:
        books.ledger.open_hold("r2", "org_2", "proj_x", "key_x", books.price, text_in=1, output=1)
    assert not caught.value.held_by_others
