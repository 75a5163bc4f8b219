"""Answers kept under a key: a request sent twice is answered once, in bounded storage. On both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from musespark.accounts import idempotency
from musespark.accounts.database import Database
from musespark.accounts.idempotency import KEEP_S, LEASE_S, LONGEST_KEY, Begun, IdempotencyStore, Kept, Running
from musespark.errors import IdempotencyConflict, IdempotencyStorageFull, InvalidRequest

NOW = 1_764_000_000


@pytest.fixture
def store(database: Database) -> IdempotencyStore:
    return IdempotencyStore(database)


def begin(
    store: IdempotencyStore, key: str = "k", body: bytes = b"body", request: str = "req_1", at: int = NOW
) -> object:
    return store.begin("proj_a", key, body, request, at)


def begun(store: IdempotencyStore, key: str = "k", request: str = "req_1", at: int = NOW) -> Begun:
    row = begin(store, key, request=request, at=at)
    assert isinstance(row, Begun)
    return row


def test_the_second_request_waits_for_the_first_and_then_gets_its_answer(store: IdempotencyStore) -> None:
    first = begun(store)
    assert begin(store, request="req_2") == Running("req_1")
    store.finish(first, 200, "application/json", b'{"a": 1}')
    assert begin(store, request="req_2") == Kept("req_1", 200, "application/json", b'{"a": 1}')


def test_another_body_is_a_conflict_while_it_runs_and_afterwards(store: IdempotencyStore) -> None:
    first = begun(store)
    with pytest.raises(IdempotencyConflict):
        begin(store, body=b"another")
    store.finish(first, 200, "text/event-stream", b"data: x")
    with pytest.raises(IdempotencyConflict):
        begin(store, body=b"another")


def test_the_same_key_in_another_project_is_another_key(store: IdempotencyStore) -> None:
    begun(store)
    assert isinstance(store.begin("proj_b", "k", b"another", "req_2", NOW), Begun)


def test_a_released_key_may_be_used_again_with_any_body(store: IdempotencyStore) -> None:
    store.release(begun(store))
    assert isinstance(begin(store, body=b"another", request="req_2"), Begun)


def test_what_a_request_does_after_it_lost_its_key_has_no_effect(store: IdempotencyStore) -> None:
    lost = begun(store)
    second = begun(store, request="req_2", at=NOW + LEASE_S)
    store.finish(lost, 200, "text/plain", b"late")
    store.release(lost)
    assert begin(store, request="req_3", at=NOW + LEASE_S) == Running("req_2")
    store.finish(second, 200, "text/plain", b"right")
    assert begin(store, at=NOW + LEASE_S) == Kept("req_2", 200, "text/plain", b"right")


def test_a_dead_process_holds_a_key_until_its_lease_ends_and_a_living_one_for_ever(store: IdempotencyStore) -> None:
    first = begun(store)
    assert isinstance(begin(store, request="req_2", at=NOW + LEASE_S - 1), Running)
    store.renew([first], NOW + LEASE_S - 1)
    assert isinstance(begin(store, request="req_2", at=NOW + LEASE_S), Running)
    assert isinstance(begin(store, request="req_2", at=NOW + 2 * LEASE_S - 1), Begun)


def test_an_answer_is_kept_for_a_day(store: IdempotencyStore) -> None:
    store.finish(begun(store), 200, "text/plain", b"x")
    assert isinstance(begin(store, at=NOW + KEEP_S - 1), Kept)
    assert isinstance(begin(store, body=b"another", at=NOW + KEEP_S), Begun)


@pytest.mark.parametrize("key", ["", "x" * (LONGEST_KEY + 1), "ü", "a\nb"])
def test_a_key_that_is_none_is_refused(store: IdempotencyStore, key: str) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        begin(store, key)
    assert isinstance(begin(store, "x" * LONGEST_KEY), Begun)


def test_the_number_of_keys_is_bounded_and_the_old_ones_make_room(
    store: IdempotencyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "MOST_KEYS", 3)
    for number in range(3):
        begun(store, f"k{number}")
    with pytest.raises(IdempotencyStorageFull):
        begin(store, "k3")
    assert isinstance(begin(store, "k2"), Running)
    assert isinstance(begin(store, "k3", at=NOW + KEEP_S), Begun)


def test_the_bytes_of_answers_are_bounded(store: IdempotencyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MOST_BYTES", 100)
    monkeypatch.setattr(idempotency, "LONGEST_ANSWER", 60)
    store.finish(begun(store, "a"), 200, "text/plain", b"x" * 60)
    store.finish(begun(store, "b"), 200, "text/plain", b"x" * 61)
    assert begin(store, "b") == Kept("req_1", 200, "text/plain", None)  # too long: it is not kept, nor made again
    store.finish(begun(store, "c"), 200, "text/plain", b"x" * 40)
    with pytest.raises(IdempotencyStorageFull):
        begin(store, "d")


def test_of_many_at_once_one_begins(store: IdempotencyStore) -> None:
    barrier = threading.Barrier(8)

    def submit(number: int) -> object:
        barrier.wait()
        return store.begin("proj_a", "k", b"body", f"req_{number}", NOW)

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(submit, range(8)))
    assert sum(isinstance(outcome, Begun) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Running) for outcome in outcomes) == 7
