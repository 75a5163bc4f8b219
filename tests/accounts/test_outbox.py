"""The outbox: an event for each usage record, claimed by one process at a time, retried with growing pauses."""

from __future__ import annotations

import json
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from musespark.accounts import outbox
from musespark.accounts.database import Database
from musespark.accounts.lines import Lines
from musespark.accounts.outbox import GIVE_UP_S, LEASE_S, Event, Outbox, pause_s, set_stripe_customer
from musespark.accounts.outbox_formats import cloud_event, secret_bytes, sign, stripe_events
from musespark.accounts.settlement import SettledRecord

NOW = 1_764_000_000
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LINES = Lines(text_in=10, cached_in=3, output=7)


def record(number: int, part: int = 0) -> SettledRecord:
    id = f"req_{number:024x}"
    return SettledRecord(
        *(f"{id}/1", part, id, 1, "org_a", "proj_a", "key_a", "nano"), *(LINES, 456, "completed", NOW - 5, NOW)
    )


def add(database: Database, *records: SettledRecord) -> None:
    for one in records:
        database.transact(lambda tx, one=one: outbox.write(tx, one))  # type: ignore[misc]


@pytest.fixture
def box(database: Database) -> Outbox:
    return Outbox(database)


def test_an_event_is_there_once_however_often_its_record_is_written(database: Database, box: Outbox) -> None:
    add(database, record(1), record(1), record(1, part=1))
    assert [event.id for event in box.claim(10, NOW)] == [f"req_{1:024x}/1/0", f"req_{1:024x}/1/1"]


def test_a_claimed_event_is_nobody_elses_until_its_lease_ends(database: Database, box: Outbox) -> None:
    add(database, record(1))
    [event] = box.claim(10, NOW)
    assert event.attempts == 1
    assert box.claim(10, NOW + LEASE_S - 1) == []
    [again] = box.claim(10, NOW + LEASE_S)
    assert again == replace(event, attempts=2)
    box.delivered(again)
    assert box.pending() == 0


def test_failures_are_retried_with_growing_pauses_until_they_are_given_up(database: Database, box: Outbox) -> None:
    assert [pause_s(attempt) for attempt in (1, 2, 3, 4, 12, 13, 1000)] == [1, 2, 4, 8, 2048, 3600, 3600]
    add(database, record(1))
    at = NOW
    for pause in (1, 2, 4):
        [event] = box.claim(10, at)
        assert box.failed(event, "status 500", at)
        assert box.claim(10, at + pause - 1) == []
        at += pause
    [event] = box.claim(10, NOW + GIVE_UP_S - 1)
    assert box.failed(event, "status 500", NOW + GIVE_UP_S - 1)
    assert not box.failed(event, "status 500", NOW + GIVE_UP_S)
    assert box.pending() == 0


def test_many_deliverers_share_the_events_and_none_has_one_twice(database: Database, box: Outbox) -> None:
    add(database, *map(record, range(40)))
    with ThreadPoolExecutor(8) as threads:
        claimed = [event.id for batch in threads.map(lambda _: box.claim(7, NOW), range(8)) for event in batch]
    assert len(claimed) == len(set(claimed))
    claimed += [event.id for event in box.claim(100, NOW)]
    assert len(set(claimed)) == 40


def event() -> Event:
    return Event(
        "req_1/1/0", "org_a", {"settled_at": NOW, "tokens": {"text_in": 10, "image_in": 0, "output": 7}}, NOW, 1
    )


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of Standard Webhooks' own documentation."""
    body = b'{"test": 2432232314}'
    signature = sign(secret_bytes(SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_cloud_event_says_who_what_and_when_and_is_the_same_in_every_attempt() -> None:
    message = cloud_event(event(), secret_bytes(SECRET), NOW + 9)
    body = json.loads(message.body)
    assert (body["specversion"], body["id"], body["source"]) == ("1.0", "req_1/1/0", "/musespark")
    assert (body["type"], body["subject"], body["time"]) == ("musespark.usage.v1", "org_a", "2025-11-24T16:00:00Z")
    later = cloud_event(event(), secret_bytes(SECRET), NOW + 99)
    assert later.body == message.body
    assert later.headers["webhook-id"] == message.headers["webhook-id"]
    assert later.headers["webhook-signature"] != message.headers["webhook-signature"]


def test_stripe_gets_one_meter_event_for_each_kind_of_tokens_that_was_used() -> None:
    messages = stripe_events(event(), "sk_test", "cus_1")
    forms = [dict(urllib.parse.parse_qsl(message.body.decode())) for message in messages]
    assert [(form["event_name"], form["payload[value]"], form["identifier"]) for form in forms] == [
        ("musespark_text_in", "10", "req_1/1/0/text_in"),
        ("musespark_output", "7", "req_1/1/0/output"),
    ]
    assert {form["payload[stripe_customer_id]"] for form in forms} == {"cus_1"}
    assert {form["timestamp"] for form in forms} == {str(NOW)}
    assert messages[0].headers["authorization"] == "Bearer sk_test"


def test_an_organisation_has_one_customer_at_stripe(database: Database, box: Outbox) -> None:
    assert box.customer_of("org_a") is None
    for customer in ("cus_1", "cus_2"):
        set_stripe_customer(database, "org_a", customer)
        assert box.customer_of("org_a") == customer


@pytest.mark.parametrize("secret", ["", "short", "x" * 15, "whsec_", "whsec_!!!", "whsec_c2hvcnQ="])
def test_a_secret_that_protects_nothing_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match=r"secret|base64"):
        secret_bytes(secret)
    assert secret_bytes("x" * 16) == b"x" * 16
