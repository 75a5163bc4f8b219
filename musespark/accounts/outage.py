"""What a server process remembers for the time when its database is away, and whether it may let anybody in then."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from musespark.accounts.plans import Plan

RETRY_S = 1.0  # while the database is away it is asked so often, and everybody else is told so at once
MOST_PLANS = 4096


@dataclass(frozen=True, slots=True)
class Health:
    """`journal_pending`: bytes that the database has yet to get. `accepting`: whether the journal has room for more."""

    database: str  # "up" | "away"
    since: float  # UTC seconds
    journal_pending: int
    accepting: bool


class Outage:
    """Thread-safe. An organisation's exposure is the most that its requests may cost that no hold in the database
    covers: those let in, and those going on, while it was away; until it has been told what they cost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._away = False
        self._retry_at = 0.0
        self.since = time.time()
        self._exposure: dict[str, tuple[str, int]] = {}  # by hold: organisation and amount
        self._plans: dict[str, tuple[Plan, float]] = {}  # by organisation, with when it was read (monotonic)

    @property
    def away(self) -> bool:
        return self._away

    def may_try(self) -> bool:
        """Whether to ask the database now; one caller a second does while it is away."""
        with self._lock:
            if not self._away:
                return True
            now = time.monotonic()
            if now < self._retry_at:
                return False
            self._retry_at = now + RETRY_S
            return True

    def note(self, *, away: bool) -> None:
        with self._lock:
            self._retry_at = time.monotonic() + RETRY_S
            if away != self._away:
                self._away, self.since = away, time.time()

    def expose(self, organisation_id: str, hold_id: str, amount: int, bound: int | None) -> bool:
        """Add to a hold's exposure, unless that brings its organisation above `bound`."""
        with self._lock:
            total = sum(value for owner, value in self._exposure.values() if owner == organisation_id)
            if bound is not None and total + amount > bound:
                return False
            before = self._exposure.get(hold_id, (organisation_id, 0))[1]
            self._exposure[hold_id] = (organisation_id, before + amount)
            return True

    def covered(self, hold_id: str) -> None:
        """The database knows what this request cost, or that it cost nothing."""
        with self._lock:
            self._exposure.pop(hold_id, None)

    def remember_plan(self, organisation_id: str, plan: Plan) -> None:
        with self._lock:
            self._plans.pop(organisation_id, None)
            self._plans[organisation_id] = (plan, time.monotonic())
            while len(self._plans) > MOST_PLANS:
                del self._plans[next(iter(self._plans))]

    def plan(self, organisation_id: str, newer_than_s: float | None = None) -> Plan | None:
        with self._lock:
            found = self._plans.get(organisation_id)
        if found is None or (newer_than_s is not None and time.monotonic() - found[1] > newer_than_s):
            return None
        return found[0]
