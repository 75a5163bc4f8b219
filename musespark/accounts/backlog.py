"""Records of requests that ended and that the database does not have yet: where they are, and whether there is room."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from musespark.accounts.journal import RECORD_BYTES, Journal, Position

log = logging.getLogger(__name__)


class Backlog:
    """Thread-safe. The records lie in the journal, from a position on; only where even that can't be written are they
    kept in memory, and then nobody new is let in, so that they stay few."""

    def __init__(self, journal: Journal, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._journal = journal
        self._lock = threading.Lock()
        self._settling = 0
        self._unsettled: Position | None = None  # where the first record lies that the database lacks
        self._unwritten: deque[dict[str, Any]] = deque()

    @contextmanager
    def settling(self) -> Iterator[None]:
        """Around writing a record and telling the database."""
        with self._lock:
            self._settling += 1
        try:
            yield
        finally:
            with self._lock:
                self._settling -= 1

    def is_settling(self) -> bool:
        """Whether a record may be in the journal and neither in the database nor kept here."""
        with self._lock:
            return self._settling > 0

    def write(self, record: dict[str, Any], *, sync: bool) -> Position | dict[str, Any]:
        """Where it lies in the journal, or the record itself if that can't be written."""
        try:
            return self._journal.append(record, sync=sync)
        except OSError as error:
            log.error("the journal can't be written: %s", error)
            return record

    def keep(self, written: Position | dict[str, Any]) -> None:
        """The database is away: remember what `write` returned, on the disk."""
        with self._lock:
            if isinstance(written, dict):
                self._unwritten.append(written)
            elif self._unsettled is None or written < self._unsettled:
                self._unsettled = written
        if not isinstance(written, dict):
            self._journal.sync()

    def take(self) -> tuple[Position | None, list[dict[str, Any]]]:
        """All that is kept; the caller tells the database, and gives back what it could not."""
        with self._lock:
            position, self._unsettled = self._unsettled, None
            unwritten = list(self._unwritten)
            self._unwritten.clear()
        return position, unwritten

    def give_back(self, position: Position | None, unwritten: list[dict[str, Any]]) -> None:
        with self._lock:
            if position is not None:
                self._unsettled = position if self._unsettled is None else min(position, self._unsettled)
            self._unwritten.extendleft(reversed(unwritten))

    def first(self) -> Position | None:
        """Where the first record lies that the database lacks; None if it has all."""
        with self._lock:
            return self._unsettled

    def pending_bytes(self) -> int:
        start = self.first()
        return 0 if start is None else self._journal.bytes_since(start)

    def has_room(self, requests: int) -> bool:
        """Whether so many requests in flight can all be kept, should the database be away when they end."""
        if self._unwritten:
            return False
        pending = self.pending_bytes()
        return not pending or pending + RECORD_BYTES * requests <= self.limit_bytes
