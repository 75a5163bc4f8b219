"""Answers kept under an Idempotency-Key, so that a request sent twice is answered and charged once.

A key belongs to a project. Its first request is `begun`; whoever comes with the same key and the same body gets that
one's answer, with another body a conflict. The row of a process that died is free again when nobody has spoken for it
for `LEASE_S`. Keys and answers are kept for `KEEP_S`, as many and as much for each project as the bounds say.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from musespark.accounts.database import Database
from musespark.accounts.transactions import Transaction
from musespark.errors import IdempotencyConflict, IdempotencyStorageFull, InvalidRequest

KEEP_S = 86_400
LEASE_S = 90
LONGEST_KEY = 255
MOST_KEYS = 10_000  # of one project
MOST_BYTES = 64 << 20  # of one project
LONGEST_ANSWER = 4 << 20

_SELECT = (
    "SELECT request_digest, request_id, alive_until, status, media_type, body, expires_at FROM idempotency_keys "
    "WHERE project_id = ? AND key_digest = ?"
)


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer. `body` None: it was longer than `LONGEST_ANSWER`."""

    request_id: str
    status: int
    media_type: str
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Begun:
    """The row of a request that is to be answered now; `request_digest` is of its body."""

    project_id: str
    key_digest: bytes
    request_digest: bytes
    request_id: str


@dataclass(frozen=True, slots=True)
class Running:
    """Another request with this key and body is being answered: ask again in a moment."""

    request_id: str


class IdempotencyStore:
    """Synchronous and thread-safe. `now` is the wall clock."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(
        self, project_id: str, key: str, body: bytes, request_id: str, now: float | None = None
    ) -> Begun | Running | Kept:
        """Take the key, or say what there is. Raises InvalidRequest, IdempotencyConflict, IdempotencyStorageFull."""
        if not 1 <= len(key) <= LONGEST_KEY or not key.isascii() or not key.isprintable():
            message = f"the Idempotency-Key must have 1 to {LONGEST_KEY} printable ASCII characters"
            raise InvalidRequest(message, param="Idempotency-Key")
        key_digest, request_digest = hashlib.sha256(key.encode()).digest(), hashlib.sha256(body).digest()
        begun = Begun(project_id, key_digest, request_digest, request_id)
        at = int(time.time() if now is None else now)
        return self._database.transact(lambda tx: self._begin(tx, begun, at))

    def _begin(self, tx: Transaction, new: Begun, now: int) -> Begun | Running | Kept:
        row = tx.row(_SELECT + tx.for_update, (new.project_id, new.key_digest))
        if row is not None and row[6] > now:
            request_digest, request_id, alive_until, status, media_type, body, _ = row
            if bytes(request_digest) != new.request_digest:
                raise IdempotencyConflict(
                    "this Idempotency-Key was used with another body; a new request needs a new key",
                    param="Idempotency-Key",
                )
            if alive_until is None:
                return Kept(request_id, status, media_type, None if body is None else bytes(body))
            if alive_until > now:
                return Running(request_id)
        if row is None:
            self._check_room(tx, new.project_id, now)
        inserted = tx.execute(
            "INSERT INTO idempotency_keys (project_id, key_digest, request_digest, request_id, alive_until, "
            "size_bytes, expires_at) VALUES (?, ?, ?, ?, ?, 0, ?) ON CONFLICT (project_id, key_digest) DO NOTHING",
            (*(new.project_id, new.key_digest, new.request_digest, new.request_id), now + LEASE_S, now + KEEP_S),
        )
        if not inserted and row is None:
            return Running("")  # another process was faster: its row is found the next time
        if not inserted:  # the old one has expired, or its process died
            tx.execute(
                "UPDATE idempotency_keys SET request_digest = ?, request_id = ?, alive_until = ?, status = NULL, "
                "media_type = NULL, body = NULL, size_bytes = 0, expires_at = ? "
                "WHERE project_id = ? AND key_digest = ?",
                (new.request_digest, new.request_id, now + LEASE_S, now + KEEP_S, new.project_id, new.key_digest),
            )
        return new

    def _check_room(self, tx: Transaction, project_id: str, now: int) -> None:
        tx.execute("DELETE FROM idempotency_keys WHERE expires_at <= ?", (now,))
        row = tx.row(
            "SELECT COUNT(*), COALESCE(SUM(size_bytes), 0) FROM idempotency_keys WHERE project_id = ?", (project_id,)
        )
        assert row is not None
        if row[0] >= MOST_KEYS or row[1] >= MOST_BYTES:
            raise IdempotencyStorageFull(
                f"the project has {row[0]:,} Idempotency-Keys with {int(row[1]):,} bytes of answers, and may have "
                f"{MOST_KEYS:,} and {MOST_BYTES:,}; they end after 24 hours: send requests without a key meanwhile"
            )

    def finish(self, begun: Begun, status: int, media_type: str, body: bytes) -> None:
        """Keep the answer."""
        kept = body if len(body) <= LONGEST_ANSWER else None
        values = (status, media_type, kept, len(kept or b""), begun.project_id, begun.key_digest, begun.request_id)
        self._database.transact(
            lambda tx: tx.execute(
                "UPDATE idempotency_keys SET alive_until = NULL, status = ?, media_type = ?, body = ?, size_bytes = ? "
                "WHERE project_id = ? AND key_digest = ? AND request_id = ?",
                values,
            )
        )

    def release(self, begun: Begun) -> None:
        """The request was refused, or failed before its first token, and cost nothing: the key may be used again."""
        values = (begun.project_id, begun.key_digest, begun.request_id)
        self._database.transact(
            lambda tx: tx.execute(
                "DELETE FROM idempotency_keys WHERE project_id = ? AND key_digest = ? AND request_id = ?", values
            )
        )

    def renew(self, running: Sequence[Begun], now: float | None = None) -> None:
        """Say that these are still being answered."""
        until = int(time.time() if now is None else now) + LEASE_S

        def work(tx: Transaction) -> None:
            for begun in running:
                tx.execute(
                    "UPDATE idempotency_keys SET alive_until = ? WHERE project_id = ? AND key_digest = ? AND "
                    "request_id = ? AND alive_until IS NOT NULL",
                    (until, begun.project_id, begun.key_digest, begun.request_id),
                )

        if running:
            self._database.transact(work)
