"""A file of weights read in large pieces, and its checksum computed from the same bytes on the way.

Whoever loads a model reads every byte of it once, nearly in the order of the file, so a second pass for the checksum
would double the time on a disk. SHA-256 needs the bytes in order: what is read out of order, or never, is read for the
checksum alone, at the next chance or at the end.
"""

from __future__ import annotations

import hashlib
import io
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from musespark.errors import CheckpointError
from musespark.model.manifest import damaged

PIECE = 8 << 20  # bytes asked for at once; from 1 MiB on the disk gives what it can
NEARBY = 64 << 20  # a gap of so many bytes is hashed at once: norms before a matrix, a matrix read later than written


class FileReader:
    """One open file. Not for several threads at a time."""

    def __init__(self, path: Path, descriptor: int, size_bytes: int) -> None:
        """Keeps a copy of `descriptor` for as long as it lives."""
        self.path = path
        self.size_bytes = size_bytes
        self.on_read: Callable[[int], None] | None = None  # told how many bytes each piece had that was asked for
        self._file = io.FileIO(os.dup(descriptor), closefd=False)
        weakref.finalize(self, os.close, self._file.fileno())
        self._digest: str | None = None
        self._hash = hashlib.sha256()
        self._hashed = 0  # bytes of the file that are in `_hash`
        self._piece: memoryview | None = None  # for reading what is only hashed
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out`, bytes. Raises CheckpointError if the file ends before, or can't be read."""
        if self._digest is not None and self._hashed < offset <= self._hashed + NEARBY:
            self._hash_up_to(offset)
        end = offset + len(out)
        if self._digest is None or not offset <= self._hashed < end:
            for piece in self._read(offset, out):
                self._report(len(piece))
        elif len(out) <= PIECE:
            for piece in self._read(offset, out):
                self._report(len(piece))
            self._hash_piece(out[self._hashed - offset :])
        else:
            self._read_and_hash(offset, out)

    def expect(self, digest: str) -> None:
        """The SHA-256 (hexadecimal) that the file must have: `check` will say whether it has."""
        self._digest = digest

    def check(self) -> None:
        """Raises CheckpointError if the file is not what `expect` was told; reads what has not been read yet."""
        if self._digest is None:
            return
        self._hash_up_to(self.size_bytes)
        if self._hash.hexdigest() != self._digest:
            raise damaged(self.path)
        self._digest = self._piece = None

    def _read_and_hash(self, offset: int, out: memoryview) -> None:
        """A piece is hashed while the next one is read."""
        with ThreadPoolExecutor(1) as worker:
            waiting: Future[None] | None = None
            for piece in self._read(offset, out):
                if waiting is not None:
                    waiting.result()
                waiting = worker.submit(self._hash_piece, piece[max(0, self._hashed - offset) :])
                offset += len(piece)
                self._report(len(piece))

    def _read(self, offset: int, out: memoryview) -> Iterator[memoryview]:
        """The parts of `out`, one after the other, as soon as they are filled."""
        try:
            self._file.seek(offset)
            done = 0
            while done < len(out):
                num_bytes = self._file.readinto(out[done : done + PIECE])
                if not num_bytes:
                    raise CheckpointError(f"{self.path} ends before byte {offset + len(out):,}; it has changed")
                yield out[done : done + num_bytes]
                done += num_bytes
        except OSError as error:
            raise CheckpointError(f"{self.path} can't be read: {error.strerror or error}") from None

    def _hash_piece(self, piece: memoryview) -> None:
        self._hash.update(piece)
        self._hashed += len(piece)

    def _hash_up_to(self, end: int) -> None:
        self._piece = self._piece or memoryview(bytearray(PIECE))
        while self._hashed < end:
            for piece in self._read(self._hashed, self._piece[: end - self._hashed]):
                self._hash_piece(piece)

    def _report(self, num_bytes: int) -> None:
        if self.on_read is not None:
            self.on_read(num_bytes)
