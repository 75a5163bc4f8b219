"""Random lives of requests: hold, extend, settle, void, expire, crash, replay, late and repeated events, clock steps.

A model in plain Python keeps its own books of what must have been charged. After every step those of the database are
checked: debits are credits, posted + held within every limit, each hold resolved at most once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from musespark.accounts.database import Database
from musespark.accounts.ledger import Hold, Ledger
from musespark.accounts.reconcile import verify
from musespark.errors import LedgerConflict, SpendLimit
from tests.accounts.books import NOW, Books, make_books, used
from tests.postgres import PostgresServer

CREDIT = 3_000_000
CAPS = {"org_1": 2_500_000, "proj_a": 1_500_000, "key_b": 700_000}
KEYS = {"key_a": "proj_a", "key_b": "proj_b"}
INPUT = 20


class LedgerMachine(RuleBasedStateMachine):
    holds: Bundle[Any] = Bundle("holds")
    ended: Bundle[Any] = Bundle("ended")
    database: Database
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.state_dir = Path(tempfile.mkdtemp(dir=self.folder))
        self.database = self.make_database(self.state_dir)
        self.books: Books = make_books(self.database, self.state_dir)
        self.books.credit(CREDIT)
        for scope, cap in CAPS.items():
            self.books.ledger.set_cap(scope, cap)
        self.now = NOW
        self.number = 0
        self.granted: dict[str, int] = {}
        self.charged: dict[str, int] = {}  # by hold: what it must have cost, were there no limits

    def make_database(self, state_dir: Path) -> Database:
        raise NotImplementedError

    @property
    def ledger(self) -> Ledger:
        return self.books.ledger

    @rule(target=holds, key=st.sampled_from(sorted(KEYS)), output=st.sampled_from([1, 16, 64, 300]))
    def open(self, key: str, output: int) -> Any:
        self.number += 1
        hold: Hold | None
        try:
            hold = self.books.open(f"r{self.number}", text_in=INPUT, output=output, key=key, now=self.now)
        except SpendLimit:
            hold = None
        if hold is None:
            assert self.free(key) < INPUT * 1250 + 4250  # never refused while there is money
            return multiple()
        self.granted[hold.id] = hold.granted_output
        assert 1 <= hold.granted_output <= output
        return hold

    @rule(hold=holds, share=st.floats(0, 1), more=st.sampled_from([1, 16, 64]))
    def extend(self, hold: Hold, share: float, more: int) -> None:
        row = self.ledger.explain(hold.request_id)[0]
        before = self.granted[hold.id]
        output = max(int(before * share), self.reported(hold.id))
        grant = self.ledger.extend(hold, used(output, text_in=INPUT), more, now=self.now)
        if row["state"] != "open":
            assert grant.final
            return
        free = self.free(hold.scope.key_id)
        assert before <= grant.granted_output <= before + more
        if grant.granted_output < before + more:
            assert free < 4250  # all that was free was granted
            assert grant.code is not None
        self.granted[hold.id] = grant.granted_output

    @rule(target=ended, hold=consumes(holds), share=st.floats(0, 1), times=st.integers(1, 2))
    def settle(self, hold: Hold, share: float, times: int) -> Any:
        output = max(int(self.granted[hold.id] * share), self.reported(hold.id))
        lines = used(output, text_in=INPUT)
        for _ in range(times):
            settlement = self.ledger.settle(hold, lines, now=self.now)
            assert settlement.amount_nano + settlement.written_off_nano == INPUT * 1250 + output * 4250
        self.charged[hold.id] = INPUT * 1250 + output * 4250
        return (hold, lines)

    @rule(hold=consumes(holds))
    def void(self, hold: Hold) -> None:
        try:
            self.ledger.void(hold, now=self.now)
        except LedgerConflict:  # it expired with usage
            self.charged[hold.id] = -1
        else:
            self.charged[hold.id] = 0

    @rule(end=ended)
    def settle_again_much_later(self, end: Any) -> None:
        hold, lines = end
        before = self.books.wallet()
        self.ledger.settle(hold, lines, now=self.now)
        with pytest.raises(LedgerConflict):
            self.ledger.settle(hold, used(lines.output + 1000, text_in=INPUT), now=self.now)
        assert self.books.wallet() == before

    @rule(seconds=st.sampled_from([-86_400, -1, 1, 200, 400]))
    def step_the_clock(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def maintain(self) -> None:
        self.ledger.maintain(self.now)

    @rule()
    def expire_what_is_due_though_it_runs(self) -> None:
        """As another machine's process would do for one that it takes for dead."""
        self.ledger._alive.clear()
        self.ledger.maintain(self.now)

    @rule()
    def crash_and_take_over(self) -> None:
        self.ledger.journal.close()  # the lock is free, as after a kill
        self.books.ledger = Ledger(self.database, self.state_dir)
        self.books.ledger.maintain(self.now)

    @invariant()
    def the_books_are_sound(self) -> None:
        report = verify(self.database, self.state_dir / "journal")
        assert not [finding for finding in report.findings if "engine" not in finding.check], report.findings

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        wallet = self.books.wallet()
        assert wallet.get("wallet", 0) >= 0
        for scope, cap in CAPS.items():
            spending = self.ledger.spending(scope, NOW)
            assert spending.posted_nano + spending.held_nano <= cap

    def free(self, key: str) -> int:
        rooms = [CAPS[s] - x.posted_nano - x.held_nano for s in ("org_1", KEYS[key], key) if s in CAPS
                 for x in [self.ledger.spending(s, self.now)]]  # fmt: skip
        return min([self.books.wallet().get("wallet", 0), *rooms])

    def reported(self, hold_id: str) -> int:
        row = self.database.transact(lambda tx: tx.row("SELECT used_output FROM holds WHERE id = ?", (hold_id,)))
        assert row is not None
        return int(row[0])

    def teardown(self) -> None:
        try:
            self.end_all()
        finally:
            self.ledger.close()
            self.database.close()

    def end_all(self) -> None:
        self.ledger._alive.clear()
        self.now += 100_000
        self.ledger.maintain(self.now)
        wallet = self.books.wallet()
        assert wallet.get("held", 0) == 0
        for id, amount in self.charged.items():
            attempt = self.ledger.explain(id.removesuffix("/1"))[0]
            assert amount < 0 or attempt["billed_nano"] + attempt["written_off_nano"] == amount


@contextmanager
def quiet_settings(examples: int, steps: int) -> Iterator[settings]:
    yield settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


def run(machine: type[LedgerMachine], examples: int, steps: int) -> None:
    with quiet_settings(examples, steps) as chosen:
        run_state_machine_as_test(machine, settings=chosen)


def sqlite_machine(tmp_path: Path) -> type[LedgerMachine]:
    class OnSqlite(LedgerMachine):
        folder = tmp_path

        def make_database(self, state_dir: Path) -> Database:
            return Database.open(state_dir)

    return OnSqlite


def postgres_machine(tmp_path: Path, postgres: PostgresServer) -> type[LedgerMachine]:
    class OnPostgres(LedgerMachine):
        folder = tmp_path

        def make_database(self, state_dir: Path) -> Database:
            return Database.open(state_dir, postgres.new_database())

    return OnPostgres


def test_random_lives_keep_the_books_sound_on_sqlite(tmp_path: Path) -> None:
    run(sqlite_machine(tmp_path), examples=8, steps=40)


def test_random_lives_keep_the_books_sound_on_postgresql(tmp_path: Path, postgres: PostgresServer) -> None:
    run(postgres_machine(tmp_path, postgres), examples=5, steps=30)


@pytest.mark.slow
def test_many_random_lives(tmp_path: Path, postgres: PostgresServer) -> None:
    run(sqlite_machine(tmp_path), examples=150, steps=60)
    run(postgres_machine(tmp_path, postgres), examples=40, steps=50)
