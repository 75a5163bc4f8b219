"""The ledger's regular work: replaying the journal, taking over from processes that died, expiring holds.

All of it may be repeated and interrupted anywhere: settling is idempotent, and a record counts as done only once the
database has it. Several processes may do it at once.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musespark.accounts import holds, settlement
from musespark.accounts.journal import (
    is_abandoned,
    owners,
    read_checkpoint,
    read_from,
    trim,
    write_checkpoint,
)
from musespark.accounts.records import hold_of, lines_of
from musespark.accounts.transactions import DatabaseAway, Transaction
from musespark.errors import LedgerConflict, MuseSparkError, NotFound

if TYPE_CHECKING:
    from musespark.accounts.ledger import Ledger

TICK_S = 0.1  # how much of the journal a power cut may take
CHECKPOINT_S = 1.0
SLOW_S = 30.0  # between looks for dead processes, expired holds and old segments
BATCH = 200  # holds per look

log = logging.getLogger(__name__)


class Maintenance:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def once(self, now: float) -> None:
        self._replay()
        self._slow_work(now)

    def _run(self) -> None:
        slow_at = checkpoint_at = 0.0
        while True:
            try:
                self._ledger.journal.sync()
                self._replay()
                if time.monotonic() >= checkpoint_at:
                    checkpoint_at = time.monotonic() + CHECKPOINT_S
                    self._ledger.database.checkpoint()
                if time.monotonic() >= slow_at:
                    slow_at = time.monotonic() + SLOW_S
                    self._slow_work(time.time())
            except DatabaseAway:
                pass  # the next round tries again
            except Exception:
                log.exception("the ledger's regular work failed")
            if self._stopped.wait(TICK_S):
                return

    def _slow_work(self, now: float) -> None:
        alive = self._ledger.alive()
        if alive:  # before anything expires: the clock may have jumped ahead
            self._ledger.call(lambda tx: holds.keep(tx, alive, now))
        self._recover(now)
        self._expire(now)
        self._checkpoint()
        trim(self._ledger.journal.root)

    def _replay(self) -> None:
        """Tell the database what it missed while it was away."""
        ledger = self._ledger
        if ledger.outage.away:
            ledger.call(lambda tx: tx.row("SELECT 1"))  # raises while it is still away
        position, unwritten = ledger.backlog.take()
        try:
            while unwritten:
                self._settle_again(unwritten[0])
                ledger.journal.append(unwritten[0])
                unwritten.pop(0)
            if position is not None:
                for after, record in read_from(ledger.journal.folder, position):
                    if record is not None:
                        self._settle_again(record)
                    position = after
                position = None
        finally:
            ledger.backlog.give_back(position, unwritten)

    def _settle_again(self, record: dict[str, Any]) -> None:
        """Apply a record once more, or for the first time. A contradiction is logged and left to `ledger verify`."""
        ledger = self._ledger
        owner, listeners, at = ledger.journal.owner, ledger.listeners, record["at"]

        def work(tx: Transaction) -> None:
            if record["kind"] == "void":
                settlement.void(tx, record["hold"], record["outcome"], at)
            else:
                settlement.settle(tx, hold_of(record), lines_of(record), record["outcome"], at, owner, listeners)

        try:
            ledger.call(work)
        except NotFound:
            pass  # a void of a request that was let in while the database was away: nothing was ever held
        except (LedgerConflict, MuseSparkError) as error:
            log.error("the journal's record of %s contradicts the ledger: %s", record["hold"], error)
        ledger.outage.covered(record["hold"])

    def _recover(self, now: float) -> None:
        """Finish what processes of this machine left when they died."""
        ledger = self._ledger
        for folder in owners(ledger.journal.root):
            if folder == ledger.journal.folder or (folder / "recovered").exists() or not is_abandoned(folder):
                continue
            self._recover_one(folder, now)

    def _recover_one(self, folder: Path, now: float) -> None:
        for _, record in read_from(folder, read_checkpoint(folder)):
            if record is not None:
                self._settle_again(record)
        query = "SELECT id FROM holds WHERE state = 'open' AND owner = ?"
        for (id,) in self._ledger.call(lambda tx: tx.rows(query, (folder.name,))):
            self._expire_one(id, now, owner_died=True)
        (folder / "recovered").touch()

    def _expire(self, now: float) -> None:
        query = f"SELECT id FROM holds WHERE state = 'open' AND expires_at <= ? ORDER BY expires_at LIMIT {BATCH}"
        for (id,) in self._ledger.call(lambda tx: tx.rows(query, (int(now),))):
            self._expire_one(id, now)

    def _expire_one(self, id: str, now: float, *, owner_died: bool = False) -> None:
        ledger = self._ledger

        def work(tx: Transaction) -> str | None:
            row = tx.row("SELECT organisation_id FROM holds WHERE id = ?", (id,))
            done = settlement.expire(tx, id, now, ledger.listeners, owner_died=owner_died)
            return row[0] if done and row else None

        organisation_id = ledger.call(work)
        if organisation_id is not None:
            ledger.freed(organisation_id)

    def _checkpoint(self) -> None:
        """Note up to where the database has everything on its disk, so that a start need not read it again."""
        ledger = self._ledger
        end = ledger.journal.end()
        if ledger.backlog.is_settling():
            return  # a record before `end` may have reached the journal alone; there will be a quieter moment
        first = ledger.backlog.first()
        ledger.database.sync()
        write_checkpoint(ledger.journal.folder, end if first is None else min(end, first))
