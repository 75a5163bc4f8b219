"""The local journal: what every request used, written before the database hears of it.

One folder per server process, of segments with one JSON record per line and a checksum behind it. A record is written
with one call to the system, so a process that is killed loses none; a power cut may tear the last line, which its
checksum shows. While the database is away each record waits for the disk (fsync); otherwise `sync` does so ten times a
second. Records stay after they reached the database, up to `keep_bytes`: they are the engine's own account of
what it did, and `musespark ledger verify` compares the ledger with them.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

SEGMENT_BYTES = 16 * 2**20
KEEP_BYTES = 256 * 2**20
BACKLOG_BYTES = 64 * 2**20  # of records that the database does not have: beyond it nobody is let in
RECORD_BYTES = 2048  # more than one record takes; what a request in flight is expected to need


@dataclass(frozen=True, slots=True, order=True)
class Position:
    segment: int
    offset: int


class Journal:
    """This process's journal. Thread-safe. The folder's lock is held until the process ends, however it ends."""

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root = root
        self.owner = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.folder = root / self.owner
        self.folder.mkdir(mode=0o700)
        self._guard = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._guard, fcntl.LOCK_EX)
        self._lock = threading.Lock()
        self._segment = 0
        self._file = -1
        self._size = 0
        self._dirty = False
        self._next_segment()

    def append(self, record: dict[str, Any], *, sync: bool = False) -> Position:
        """Write a record, and with `sync` wait until it is on the disk. Raises OSError."""
        line = encode(record)
        with self._lock:
            if self._size + len(line) > SEGMENT_BYTES:
                self._next_segment()
            position = Position(self._segment, self._size)
            written = os.write(self._file, line)
            if written != len(line):  # a full disk: take the torn line back, so that the next one starts clean
                os.ftruncate(self._file, self._size)
                raise OSError(28, "no space left for the journal")
            self._size += written
            self._dirty = True
            if sync:
                self._sync()
        return position

    def sync(self) -> None:
        with self._lock:
            self._sync()

    def end(self) -> Position:
        with self._lock:
            return Position(self._segment, self._size)

    def bytes_since(self, position: Position) -> int:
        with self._lock:
            return (self._segment - position.segment) * SEGMENT_BYTES + self._size - position.offset

    def close(self) -> None:
        with self._lock:
            self._sync()
            os.close(self._file)
            os.close(self._guard)

    def _sync(self) -> None:
        if self._dirty:
            os.fdatasync(self._file)
            self._dirty = False

    def _next_segment(self) -> None:
        if self._file >= 0:
            self._sync()
            os.close(self._file)
        self._segment += 1
        path = segment_path(self.folder, self._segment)
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._size = 0


def encode(record: dict[str, Any]) -> bytes:
    body = orjson.dumps(record)
    return b"%s %08x\n" % (body, zlib.crc32(body))


def decode(line: bytes) -> dict[str, Any] | None:
    """None for a line that is torn or damaged."""
    body, _, checksum = line.rstrip(b"\n").rpartition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
        return None
    record: dict[str, Any] = orjson.loads(body)
    return record


def segment_path(folder: Path, segment: int) -> Path:
    return folder / f"{segment:08d}.jsonl"


def read_from(folder: Path, start: Position) -> Iterator[tuple[Position, dict[str, Any] | None]]:
    """The records from `start` on, with where each one ends; None in place of a damaged one."""
    for path in sorted(folder.glob("*.jsonl")):
        segment = int(path.stem)
        if segment < start.segment:
            continue
        offset = start.offset if segment == start.segment else 0
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                offset += len(line)
                yield Position(segment, offset), decode(line)


def owners(root: Path) -> list[Path]:
    """The folders of all processes that ever wrote here, the oldest first."""
    folders = [folder for folder in root.glob("*") if (folder / "lock").exists()]
    return sorted(folders, key=lambda folder: (folder.stat().st_mtime, folder.name))


def is_abandoned(folder: Path) -> bool:
    """Whether the process that wrote there is gone: its lock is free."""
    try:
        guard = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(guard)
    return True


def read_checkpoint(folder: Path) -> Position:
    """Up to where the database is known to have everything, on its disk."""
    try:
        segment, offset = (folder / "checkpoint").read_text().split()
        return Position(int(segment), int(offset))
    except (OSError, ValueError):
        return Position(0, 0)


def write_checkpoint(folder: Path, position: Position) -> None:
    path = folder / "checkpoint.new"
    path.write_text(f"{position.segment} {position.offset}")
    path.rename(folder / "checkpoint")


def trim(root: Path, keep_bytes: int = KEEP_BYTES) -> None:
    """Delete the oldest segments that the database has, until all together take at most `keep_bytes`."""
    paths = [(folder, path) for folder in owners(root) for path in sorted(folder.glob("*.jsonl"))]
    total = sum(path.stat().st_size for _, path in paths)
    for folder, path in paths:
        done = (folder / "recovered").exists()
        if total > keep_bytes and (done or int(path.stem) < read_checkpoint(folder).segment):
            total -= path.stat().st_size
            path.unlink()
        if done and not any(folder.glob("*.jsonl")):
            for rest in folder.iterdir():
                rest.unlink()
            folder.rmdir()
