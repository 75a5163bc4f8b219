"""The door of the ledger: what the request path calls, on a database that may be away.

    with Ledger(database, state_dir) as ledger:
        hold = ledger.open_hold("req_1", org, project, key, ledger.price("nano"), text_in=300, output=64)
        grant = ledger.extend(hold, Lines(text_in=300, output=40), more=64)
        ledger.settle(hold, Lines(text_in=300, output=97))

Synchronous and thread-safe; a call takes a fraction of a millisecond and at worst a few seconds, so it belongs in a
thread. The rules of what is charged are in docs/billing.md. Money is integer nano-units of the organisation's currency.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from musespark.accounts import holds, recovery, settlement, statements
from musespark.accounts.backlog import Backlog
from musespark.accounts.database import Database
from musespark.accounts.holds import Grant, Hold, hold_id
from musespark.accounts.journal import BACKLOG_BYTES, Journal
from musespark.accounts.lines import Lines
from musespark.accounts.outage import Health, Outage
from musespark.accounts.plans import Plan
from musespark.accounts.price_book import REMEMBER_S, PriceBook
from musespark.accounts.prices import PriceSnapshot
from musespark.accounts.purse import Scope, period_of
from musespark.accounts.records import usage_record, void_record
from musespark.accounts.settlement import OnSettled, SettledRecord, Settlement
from musespark.accounts.statements import Balance, Spending
from musespark.accounts.transactions import DatabaseAway, Transaction
from musespark.errors import LedgerUnavailable, NotFound

T = TypeVar("T")
log = logging.getLogger(__name__)

__all__ = ["REMEMBER_S", "Balance", "Grant", "Health", "Hold", "Ledger", "SettledRecord", "Settlement", "Spending"]


class Ledger:
    def __init__(self, database: Database, state_dir: Path, *, backlog_bytes: int = BACKLOG_BYTES) -> None:
        self.database = database
        self.journal = Journal(state_dir / "journal")
        self.outage = Outage()
        self.backlog = Backlog(self.journal, backlog_bytes)
        self._price_book = PriceBook()
        self._lock = threading.Lock()
        self._granted: dict[str, int] = {}  # by hold: output tokens granted so far, of requests in flight here
        self._alive: weakref.WeakValueDictionary[str, Hold] = weakref.WeakValueDictionary()
        self._subscribers: list[Callable[[str], None]] = []
        self._on_settled: list[OnSettled] = []
        self._maintenance = recovery.Maintenance(self)

    # -- what things cost, and who may

    def price(self, model: str, now: float | None = None, *, organisation_id: str | None = None) -> PriceSnapshot:
        """The price of a model for an organisation's currency; zero where no price list names the model.

        Raises PlanRefused for a model that has prices, but none in this currency or none yet.
        """
        at = time.time() if now is None else now
        try:
            return self._price_book.price(self.call, model, at, organisation_id)
        except DatabaseAway:
            raise self._unavailable() from None

    def plan(self, organisation_id: str, now: float | None = None) -> Plan:
        """The organisation's plan, at most a second old; an old one while the database is away."""
        fresh = self.outage.plan(organisation_id, REMEMBER_S)
        if fresh is not None and now is None:
            return fresh
        at = time.time() if now is None else now
        try:
            plan = self.call(lambda tx: statements.current_plan(tx, organisation_id, at))
        except DatabaseAway:
            old = self.outage.plan(organisation_id)
            if old is None:
                raise self._unavailable() from None
            return old
        self.outage.remember_plan(organisation_id, plan)
        return plan

    # -- a request's life

    def open_hold(
        self,
        request_id: str,
        organisation_id: str,
        project_id: str,
        key_id: str,
        price: PriceSnapshot,
        *,
        text_in: int,
        image_in: int = 0,
        output: int,
        max_output: int | None = None,
        attempt: int = 1,
        now: float | None = None,
    ) -> Hold:
        """Hold the input and the first `output` tokens, or fewer if that is what the money pays for.

        Raises a SpendLimit, and LedgerUnavailable while the database is away and the plan refuses then. The same
        request and attempt again is the same hold.
        """
        at = time.time() if now is None else now
        wanted = output if max_output is None else min(output, max_output)
        scope = Scope(organisation_id, project_id, key_id, period_of(at))
        id = hold_id(request_id, attempt)
        asked = Hold(id, request_id, attempt, scope, price, wanted, False, int(at))
        if not self._accepting():
            raise self._unavailable()
        try:
            hold = self.call(lambda tx: holds.open_hold(tx, asked, text_in, image_in, self.journal.owner, at))
        except DatabaseAway:
            hold = self._let_in(asked, price.most_for_input(text_in, image_in) + wanted * price.most_per_output)
        with self._lock:
            self._granted[id] = hold.granted_output
            self._alive[id] = hold
        return hold

    def extend(self, hold: Hold, used: Lines, more: int, *, now: float | None = None, give_up: bool = False) -> Grant:
        """Ask for `more` output tokens beyond those granted; see Grant. `give_up` ends the waiting."""
        at = time.time() if now is None else now
        granted = self._granted.get(hold.id, hold.granted_output)
        try:
            if hold.outage:
                raise DatabaseAway
            grant = self.call(lambda tx: holds.extend(tx, hold.id, used, more, at, granted=granted, give_up=give_up))
        except DatabaseAway:
            # Requests that were let in finish. A plan's bound holds for those that it let in without the database.
            plan = self.outage.plan(hold.organisation_id)
            bound = plan.outage_bound_nano if hold.outage and plan is not None else None
            if not self.outage.expose(hold.organisation_id, hold.id, more * hold.price.most_per_output, bound):
                message = "the plan's bound for the time without the database is reached"
                return Grant(granted, final=True, code=LedgerUnavailable.code, message=message)
            grant = Grant(granted + more)
        with self._lock:
            self._granted[hold.id] = grant.granted_output
        return grant

    def settle(self, hold: Hold, used: Lines, *, outcome: str = "completed", now: float | None = None) -> Settlement:
        """Bill exactly what was used, now or when the database is back. Raises LedgerConflict if it was otherwise."""
        at = time.time() if now is None else now
        outcome = outcome[:32]
        owner, listeners = self.journal.owner, self._on_settled
        with self._journaled(hold, usage_record(hold, used, outcome, at)):
            return self.call(lambda tx: settlement.settle(tx, hold, used, outcome, at, owner, listeners))
        return Settlement(hold.id, used, hold.price, hold.price.cost(used), pending=True)

    def void(self, hold: Hold, *, outcome: str = "failed", now: float | None = None) -> None:
        """The request failed before its first token: everything is given back."""
        at = time.time() if now is None else now
        outcome = outcome[:32]
        with self._journaled(hold, void_record(hold, outcome, at)), contextlib.suppress(NotFound):
            if not hold.outage:
                self.call(lambda tx: settlement.void(tx, hold.id, outcome, at))

    def keep_alive(self, running: Iterable[Hold], now: float | None = None) -> None:
        """Put off the expiry of holds. Those whose Hold objects are still referred to are kept by themselves."""
        at, ids = (time.time() if now is None else now), [hold.id for hold in running]
        if ids:
            self.call(lambda tx: holds.keep(tx, ids, at))

    # -- looking and setting

    def explain(self, request_id: str) -> list[dict[str, Any]]:
        return self.call(lambda tx: statements.explain(tx, request_id))

    def balance(self, organisation_id: str, now: float | None = None) -> Balance:
        at = time.time() if now is None else now
        return self.call(lambda tx: statements.balance(tx, organisation_id, at))

    def spending(self, scope_id: str, now: float | None = None) -> Spending:
        at = time.time() if now is None else now
        return self.call(lambda tx: statements.spending(tx, scope_id, period_of(at)))

    def set_cap(self, scope_id: str, monthly_nano: int | None, now: float | None = None) -> None:
        at = time.time() if now is None else now
        self.call(lambda tx: statements.set_cap(tx, scope_id, monthly_nano, at))

    def health(self) -> Health:
        state = "away" if self.outage.away else "up"
        return Health(state, self.outage.since, self.backlog.pending_bytes(), self._accepting())

    def subscribe(self, callback: Callable[[str], None]) -> None:
        """`callback(organisation_id)` after money came free here; from any thread, so it must be quick."""
        self._subscribers.append(callback)

    def on_settled(self, callback: OnSettled) -> None:
        """`callback(tx, record)` inside the transaction that writes a usage record."""
        self._on_settled.append(callback)

    # -- life of the process

    def start(self) -> None:
        """Take over what processes that died have left, and begin the regular work in a thread."""
        self._maintenance.start()

    def maintain(self, now: float | None = None) -> None:
        """Do the regular work once: replay, recovery, expiry. `start` does it by itself."""
        self._maintenance.once(time.time() if now is None else now)

    def close(self) -> None:
        self._maintenance.stop()
        self.journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside

    def call(self, work: Callable[[Transaction], T]) -> T:
        """`work` in a transaction. Raises DatabaseAway, at once if it was away a moment ago."""
        if not self.outage.may_try():
            raise DatabaseAway
        try:
            result = self.database.transact(work)
        except DatabaseAway as error:
            if not self.outage.away:
                log.warning("the ledger's database is away: %s", error)
            self.outage.note(away=True)
            raise
        if self.outage.away:
            log.warning("the ledger's database is back")
            self.outage.note(away=False)
        return result

    def freed(self, organisation_id: str) -> None:
        for callback in self._subscribers:
            callback(organisation_id)

    def alive(self) -> list[str]:
        with self._lock:
            return list(self._alive.keys())

    @property
    def listeners(self) -> list[OnSettled]:
        return self._on_settled

    @contextmanager
    def _journaled(self, hold: Hold, record: dict[str, Any]) -> Iterator[None]:
        """Write the record first; if the database turns out to be away, it gets the record later."""
        with self.backlog.settling():
            written = self.backlog.write(record, sync=self.outage.away)
            try:
                yield
                self.outage.covered(hold.id)
            except DatabaseAway:
                self.backlog.keep(written)
        self._ended(hold)

    def _let_in(self, asked: Hold, cost: int) -> Hold:
        plan = self.outage.plan(asked.organisation_id)
        if plan is None or plan.outage != "allow":
            raise self._unavailable() from None
        if not self.outage.expose(asked.organisation_id, asked.id, cost, plan.outage_bound_nano):
            raise self._unavailable() from None
        return Hold(
            asked.id, asked.request_id, asked.attempt, asked.scope, asked.price, asked.granted_output, False,
            asked.opened_at, outage=True,
        )  # fmt: skip

    def _ended(self, hold: Hold) -> None:
        with self._lock:
            self._granted.pop(hold.id, None)
            self._alive.pop(hold.id, None)
        self.freed(hold.organisation_id)

    def _accepting(self) -> bool:
        return self.backlog.has_room(len(self._granted) + 1)

    def _unavailable(self) -> LedgerUnavailable:
        return LedgerUnavailable(
            "the ledger's database is away, and this plan lets no requests in meanwhile; try again soon",
            retry_after_ms=2000,
        )
