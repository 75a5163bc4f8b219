"""The database goes away and comes back; processes are killed between any two steps; two race for the last cent."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from musespark.accounts.database import Database
from musespark.accounts.journal import Position, read_from, trim
from musespark.accounts.plans import Plan, create_plan
from musespark.accounts.reconcile import verify
from musespark.accounts.subscriptions import subscribe
from musespark.accounts.transactions import DatabaseAway
from musespark.errors import LedgerUnavailable
from tests.accounts.books import NOW, OUT, Books, make_books, used
from tests.postgres import running_server

INPUT = 100 * 1250


class Switch:
    """A database that can be taken away, as seen by the ledger. (The real PostgreSQL stops in a test below.)"""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.away = False

    def transact(self, work, *, durable: bool = False):  # type: ignore[no-untyped-def]
        if self.away:
            raise DatabaseAway("taken away")
        return self._database.transact(work, durable=durable)

    def sync(self) -> None:
        self._database.sync()

    def checkpoint(self) -> None:
        self._database.checkpoint()


@pytest.fixture
def switch(books: Books, monkeypatch: pytest.MonkeyPatch) -> Switch:
    monkeypatch.setattr("musespark.accounts.outage.RETRY_S", 0.0)
    made = Switch(books.database)
    monkeypatch.setattr(books.ledger, "database", made)
    return made


def test_admitted_requests_finish_and_are_billed_once_when_it_is_back(books: Books, switch: Switch) -> None:
    books.credit(10**9)
    one, two = books.open("r1"), books.open("r2")
    switch.away = True
    assert books.ledger.extend(one, used(60), 64).granted_output == 128
    assert books.ledger.extend(one, used(120), 64).granted_output == 192
    settlement = books.ledger.settle(one, used(150), now=NOW)
    assert (settlement.amount_nano, settlement.pending) == (INPUT + 150 * OUT, True)
    books.ledger.void(two, now=NOW)
    health = books.ledger.health()
    assert (health.database, health.accepting) == ("away", True)
    assert health.journal_pending > 0
    with pytest.raises(DatabaseAway):
        books.ledger.maintain(NOW)
    switch.away = False
    for _ in range(2):
        books.ledger.maintain(NOW)
    assert books.wallet() == {
        "wallet": 10**9 - INPUT - 150 * OUT, "revenue": INPUT + 150 * OUT, "funding": -(10**9)
    }  # fmt: skip
    assert books.ledger.health().database == "up"
    assert books.ledger.health().journal_pending == 0
    books.check()


def test_what_no_limit_allows_is_written_off_and_never_charged(books: Books, switch: Switch) -> None:
    books.credit(INPUT + 100 * OUT)
    hold = books.open("r1")
    switch.away = True
    books.ledger.extend(hold, used(64), 64)
    books.ledger.settle(hold, used(128), now=NOW)
    switch.away = False
    books.ledger.maintain(NOW)
    (attempt,) = books.ledger.explain("r1")
    assert (attempt["billed_nano"], attempt["written_off_nano"]) == (INPUT + 100 * OUT, 28 * OUT)
    assert books.wallet()["written_off"] == -28 * OUT
    books.check()


def test_a_request_goes_on_growing_when_the_database_is_back(books: Books, switch: Switch) -> None:
    """Its grants of the time in between count: with the database's older number it would stand still for ever."""
    books.credit(10**9)
    hold = books.open("r1")
    switch.away = True
    for number in (1, 2, 3):
        assert books.ledger.extend(hold, used(64 * number - 32), 64).granted_output == 64 + 64 * number
    switch.away = False
    assert books.ledger.extend(hold, used(224), 64).granted_output == 64 + 64 * 4
    assert books.wallet()["held"] == INPUT + 320 * OUT
    books.ledger.settle(hold, used(320), now=NOW)
    assert books.wallet()["revenue"] == INPUT + 320 * OUT
    books.check()


def test_what_was_promised_in_an_outage_and_nothing_pays_for_stops_the_request_and_exceeds_nothing(
    books: Books, switch: Switch
) -> None:
    books.credit(INPUT + 100 * OUT)
    hold = books.open("r1")
    switch.away = True
    assert books.ledger.extend(hold, used(60), 64).granted_output == 128
    switch.away = False
    grant = books.ledger.extend(hold, used(120), 64)
    assert (grant.granted_output, grant.final, grant.code) == (128, True, "credit_balance_exhausted")
    assert books.wallet()["held"] == INPUT + 100 * OUT
    assert books.ledger.settle(hold, used(128), now=NOW).written_off_nano == 28 * OUT
    books.check()


def test_a_prepaid_plan_refuses_new_requests_and_a_trusted_one_lets_them_in_up_to_its_bound(
    books: Books, switch: Switch
) -> None:
    books.credit(10**9)
    assert books.ledger.plan("org_1").id == "none"
    switch.away = True
    with pytest.raises(LedgerUnavailable) as caught:
        books.open("r1")
    assert caught.value.retry_after_ms > 0
    switch.away = False
    bound = 2 * (INPUT + 64 * OUT)
    create_plan(books.database, Plan("trusted", name="Trusted", outage="allow", outage_bound_nano=bound))
    subscribe(books.database, "org_1", "trusted", now=NOW)
    books.ledger.outage._plans.clear()
    books.ledger.plan("org_1")
    switch.away = True
    one, two = books.open("r1"), books.open("r2")
    assert one.outage
    with pytest.raises(LedgerUnavailable):
        books.open("r3", text_in=0, output=1)
    assert books.ledger.extend(one, used(64), 1).final
    books.ledger.settle(one, used(64), now=NOW)
    books.ledger.void(two, now=NOW)
    switch.away = False
    books.ledger.maintain(NOW)
    assert books.ledger.explain("r1")[0]["billed_nano"] == INPUT + 64 * OUT
    books.check()


def test_nobody_is_let_in_when_the_journal_has_no_room(books: Books, switch: Switch) -> None:
    books.credit(10**9)
    books.ledger.backlog.limit_bytes = 5000
    holds = [books.open(f"r{number}") for number in range(4)]
    switch.away = True
    for hold in holds[:2]:
        books.ledger.settle(hold, used(1), now=NOW)
    switch.away = False
    assert not books.ledger.health().accepting
    with pytest.raises(LedgerUnavailable):
        books.open("r9")
    books.ledger.maintain(NOW)
    books.open("r9")


def test_with_database_and_journal_unwritable_records_stay_in_memory_and_nobody_is_let_in(
    books: Books, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.credit(10**9)
    hold = books.open("r1")

    def full(record: object, *, sync: bool = False) -> None:
        raise OSError(28, "no space left")

    with monkeypatch.context() as disk:
        disk.setattr(books.ledger.journal, "append", full)
        switch.away = True
        assert books.ledger.settle(hold, used(5), now=NOW).pending
        switch.away = False
        with pytest.raises(LedgerUnavailable):
            books.open("r2")
    books.ledger.maintain(NOW)
    assert books.wallet()["revenue"] == INPUT + 5 * OUT
    books.open("r2")
    books.check()


def test_a_stopped_postgresql_is_survived_with_no_token_lost(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musespark.accounts.outage.RETRY_S", 0.0)
    with running_server() as server:
        database = Database.open(state_dir, server.empty_database())
        books = make_books(database, state_dir)
        books.credit(10**9)
        hold = books.open("r1")
        server.stop("immediate")
        assert books.ledger.extend(hold, used(64), 64).granted_output == 128
        assert books.ledger.settle(hold, used(100), now=NOW).pending
        with pytest.raises(LedgerUnavailable):
            books.open("r2")
        server.start()
        books.ledger.maintain(NOW)
        assert books.ledger.explain("r1")[0]["billed_nano"] == INPUT + 100 * OUT
        books.check()
        books.ledger.close()
        database.close()


def test_events_out_of_order_and_repeated_give_the_same_books(books: Books, switch: Switch) -> None:
    books.credit(10**9)
    holds = [books.open(f"r{number}") for number in range(6)]
    switch.away = True
    for number, hold in enumerate(holds):
        books.ledger.settle(hold, used(number), now=NOW)
    switch.away = False
    records = [record for _, record in read_from(books.ledger.journal.folder, Position(0, 0))]
    shuffled = records * 2
    random.Random(7).shuffle(shuffled)
    for record in shuffled:
        assert record is not None
        books.ledger._maintenance._settle_again(record)
    assert books.wallet()["revenue"] == 6 * INPUT + sum(range(6)) * OUT
    books.check()


def test_old_segments_go_only_when_the_database_has_them(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musespark.accounts.journal.SEGMENT_BYTES", 2000)
    books.credit(10**9)
    for number in range(30):
        books.ledger.settle(books.open(f"r{number}"), used(1))
    folder = books.ledger.journal.folder
    before = sorted(folder.glob("*.jsonl"))
    trim(books.ledger.journal.root, keep_bytes=4000)
    assert sorted(folder.glob("*.jsonl")) == before  # no checkpoint yet
    books.ledger.maintain(NOW)
    trim(books.ledger.journal.root, keep_bytes=4000)
    left = sorted(folder.glob("*.jsonl"))
    assert left == before[-len(left) :]
    assert 1 <= len(left) <= 3


WORKER = """
import sys, pathlib, random
from musespark.accounts.database import Database
from musespark.accounts.ledger import Ledger
from musespark.errors import SpendLimit
from tests.accounts.books import used
state_dir, url, name, count = pathlib.Path(sys.argv[1]), sys.argv[2] or None, sys.argv[3], int(sys.argv[4])
database = Database.open(state_dir, url)
ledger = Ledger(database, state_dir)
price = ledger.price("muse-spark", 1_795_600_000)
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    try:
        hold = ledger.open_hold(f"{name}-{number}", "org_1", "proj_a", "key_a", price, text_in=1, output=8)
    except SpendLimit:
        continue
    print("open", hold.id, flush=True)
    grant = ledger.extend(hold, used(hold.granted_output, text_in=1), 8)
    if random.random() < 0.2:
        ledger.settle(hold, used(grant.granted_output, text_in=1))
    else:
        ledger.settle(hold, used(hold.granted_output, text_in=1))
    print("settled", hold.id, flush=True)
ledger.close()
database.close()
"""


def worker(state_dir: Path, url: str | None, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(state_dir), url or "", name, str(count)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def run_and_kill(state_dir: Path, kills: int) -> None:
    """Kill a process that opens, extends and settles at a random moment, and let the next one take over."""
    database = Database.open(state_dir)
    books = make_books(database, state_dir)
    books.credit(10**12)
    generator = random.Random(kills)
    for number in range(kills):
        process = worker(state_dir, None, f"k{number}", 100_000)
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(generator.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        books.ledger.maintain(NOW)
        report = verify(database, state_dir / "journal")
        assert report.sound, report.findings
        assert (report.difference, report.pending) == (0, 0)
        rows = database.transact(lambda tx: tx.rows("SELECT id, state FROM holds"))
        states = dict(rows)
        assert "open" not in states.values()
        for line in output.rpartition("\n")[0].splitlines():  # the kill may have torn the last line
            event, _, id = line.partition(" ")
            assert event != "settled" or states[id] == "posted"
    books.ledger.close()
    database.close()


def test_a_kill_between_any_two_steps_loses_and_doubles_nothing(state_dir: Path) -> None:
    run_and_kill(state_dir, kills=4)


@pytest.mark.slow
def test_two_hundred_kills_lose_and_double_nothing(state_dir: Path) -> None:
    run_and_kill(state_dir, kills=200)


def test_two_processes_race_for_the_last_cent_and_share_it_exactly(
    database: Database, state_dir: Path, database_url: str | None
) -> None:
    books = make_books(database, state_dir)
    books.credit(10**9)
    cap = 40 * (1250 + 8 * OUT) + 3 * OUT + 1250 + 77
    books.ledger.set_cap("org_1", cap)
    processes = [worker(state_dir, database_url, name, 60) for name in "ab"]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("\n", timeout=60)
    spending = books.ledger.spending("org_1")
    assert spending.held_nano == 0
    assert cap - (1250 + OUT) < spending.posted_nano <= cap  # not one nano-dollar over, and not one token left unsold
    books.check()
    books.ledger.close()


def test_fifty_long_requests_under_one_cap_use_it_to_the_last_token(books: Books) -> None:
    books.credit(10**12)
    cap = 50 * 1250 + 5000 * OUT + 777
    books.ledger.set_cap("proj_a", cap)
    generated: list[int] = []
    holds = [books.open(f"r{number}", text_in=1, output=16) for number in range(50)]

    def one(number: int) -> None:
        random_steps, hold = random.Random(number), holds[number]
        granted, output, final = hold.granted_output, 0, hold.final
        end = 60 if number % 5 == 0 else 10**6  # some end early and free what they hold
        while output < end and not (final and output == granted):
            output = min(granted, output + random_steps.randint(1, 16), end)
            if output < end and not final:
                grant = books.ledger.extend(hold, used(output, text_in=1), 16)
                granted, final = grant.granted_output, grant.final
                if grant.waiting:
                    time.sleep(0.001)
        books.ledger.settle(hold, used(output, text_in=1))
        generated.append(output)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(generated) == 50
    assert sum(generated) == 5000
    assert books.ledger.spending("proj_a", NOW).posted_nano == cap - 777
    books.check()


def test_a_sqlite_file_that_is_locked_for_long_is_an_outage_too(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musespark.accounts.transactions.BUSY_TIMEOUT_MS", 30)
    monkeypatch.setattr("musespark.accounts.outage.RETRY_S", 0.0)
    database = Database.open(state_dir)
    books = make_books(database, state_dir)
    books.credit(10**9)
    hold = books.open("r1")
    other = sqlite3.connect(state_dir / "musespark.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert books.ledger.settle(hold, used(5), now=NOW).pending
    other.execute("ROLLBACK")
    other.close()
    books.ledger.maintain(NOW)
    assert books.wallet()["revenue"] == INPUT + 5 * OUT
    books.check()
    books.ledger.close()
    database.close()


def test_the_regular_work_does_it_all_by_itself(books: Books, switch: Switch) -> None:
    books.credit(10**9)
    books.ledger.start()
    hold = books.open("r1")
    switch.away = True
    books.ledger.settle(hold, used(5), now=NOW)
    switch.away = False
    deadline = time.monotonic() + 10
    while "revenue" not in books.wallet() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert books.wallet()["revenue"] == INPUT + 5 * OUT
