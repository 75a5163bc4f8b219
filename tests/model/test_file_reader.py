"""Files read in pieces in any order give their bytes and, whatever the order, the verdict of their checksum."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from musespark.errors import CheckpointError
from musespark.model import file_reader
from musespark.model.file_reader import FileReader

PIECE = 1000
SIZE = 10 * PIECE + 17
CONTENT = np.random.default_rng(0).bytes(SIZE)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file_reader, "PIECE", PIECE)
    monkeypatch.setattr(file_reader, "NEARBY", 2 * PIECE)
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


def reader_of(path: Path, digest: str | None = None) -> FileReader:
    with path.open("rb") as file:
        reader = FileReader(path, file.fileno(), SIZE)
    if digest is not None:
        reader.expect(digest)
    return reader


def read(reader: FileReader, start: int, end: int) -> bytes:
    out = bytearray(end - start)
    reader.read_into(start, memoryview(out))
    return bytes(out)


# Which bytes are read, one after the other: in order, with gaps near and far, backwards, twice, not at all.
ORDERS = {
    "all at once": [(0, SIZE)],
    "in order": [(0, 10), (10, 5 * PIECE), (5 * PIECE, SIZE)],
    "gaps of one piece": [(100, PIECE), (2 * PIECE, 4 * PIECE), (5 * PIECE, SIZE)],
    "a gap that is too far": [(4 * PIECE, SIZE), (0, 4 * PIECE)],
    "backwards": [(5 * PIECE, SIZE), (PIECE, 5 * PIECE), (0, PIECE)],
    "overlapping": [(0, 3 * PIECE), (PIECE, 6 * PIECE), (0, 100), (2 * PIECE, SIZE)],
    "nothing": [],
}


@pytest.mark.parametrize("order", ORDERS)
def test_bytes_are_those_of_the_file_and_its_checksum_is_checked(order: str, path: Path) -> None:
    good = reader_of(path, hashlib.sha256(CONTENT).hexdigest())
    for start, end in ORDERS[order]:
        assert read(good, start, end) == CONTENT[start:end]
    good.check()
    good.check()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("damaged", [0, 5 * PIECE, SIZE - 1])
def test_one_flipped_bit_anywhere_is_found_in_every_order(order: str, damaged: int, path: Path) -> None:
    content = bytearray(CONTENT)
    content[damaged] ^= 1
    path.write_bytes(content)
    reader = reader_of(path, hashlib.sha256(CONTENT).hexdigest())
    for start, end in ORDERS[order]:
        assert read(reader, start, end) == content[start:end]
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"file is damaged: its SHA-256 is not the one in SHA256SUMS"):
            reader.check()


def count_of_bytes_read(reader: FileReader, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every read of the file."""
    sizes: list[int] = []

    class Counting:
        def __init__(self, file: object) -> None:
            self.seek, self.readinto_file = file.seek, file.readinto  # type: ignore[attr-defined]

        def readinto(self, out: memoryview) -> int:
            sizes.append(self.readinto_file(out))
            return sizes[-1]

    monkeypatch.setattr(reader, "_file", Counting(reader._file))
    return sizes


@pytest.mark.parametrize("order", ["all at once", "in order"])
def test_in_order_the_file_is_read_once_for_both(order: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(path, hashlib.sha256(CONTENT).hexdigest())
    sizes = count_of_bytes_read(reader, monkeypatch)
    for start, end in ORDERS[order]:
        read(reader, start, end)
    reader.check()
    assert sum(sizes) == SIZE
    assert max(sizes) == PIECE


def test_only_what_was_read_out_of_order_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(path, hashlib.sha256(CONTENT).hexdigest())
    sizes = count_of_bytes_read(reader, monkeypatch)
    for start, end in ((4 * PIECE, 6 * PIECE), (0, 4 * PIECE), (6 * PIECE, SIZE)):
        read(reader, start, end)
    reader.check()
    assert sum(sizes) == SIZE + 2 * PIECE


def test_a_file_without_a_checksum_is_read_no_further(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(path)
    sizes = count_of_bytes_read(reader, monkeypatch)
    assert read(reader, 5, 50) == CONTENT[5:50]
    reader.check()
    assert sum(sizes) == 45


def test_progress_counts_what_was_asked_for(path: Path) -> None:
    reader = reader_of(path, hashlib.sha256(CONTENT).hexdigest())
    counts: list[int] = []
    reader.on_read = counts.append
    for start, end in ((PIECE, 4 * PIECE), (4 * PIECE, 4 * PIECE + 7)):
        read(reader, start, end)
    reader.check()
    assert counts == [PIECE, PIECE, PIECE, 7]


def test_a_file_that_shrinks_is_an_error_that_names_it(path: Path) -> None:
    reader = reader_of(path, hashlib.sha256(CONTENT).hexdigest())
    os.truncate(path, SIZE - 1)
    assert read(reader, 0, SIZE - 1) == CONTENT[:-1]
    with pytest.raises(CheckpointError, match=rf"file ends before byte {SIZE:,}; it has changed"):
        read(reader, 0, SIZE)
    with pytest.raises(CheckpointError, match=r"file ends before byte"):
        reader.check()


def test_a_file_that_can_not_be_read_is_an_error_that_names_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(path)
    folder = os.open(path.parent, os.O_RDONLY)  # reading it says that it is a directory
    try:
        os.dup2(folder, reader._file.fileno())
    finally:
        os.close(folder)
    with pytest.raises(CheckpointError, match=r"file can't be read: Is a directory"):
        read(reader, 0, 1)
