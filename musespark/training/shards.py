"""Reads the data pack: Zstandard JSON lines and tar files of images, one checked record at a time.

Rows are data from outside: a bad one stops the run with a DataError that names the file and the row, never silently.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from musespark.errors import DataError


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of one `.jsonl.zst` file, in order. Raises DataError naming file and line."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(_decompress(file)), start=1):
                yield _object(line.decode("utf-8"), f"{path.name} line {number}")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give the data pack with --data or MUSESPARK_DATA") from None
    except (OSError, EOFError, UnicodeDecodeError, zstandard.ZstdError) as error:
        raise DataError(f"{path} can't be read: {error}") from None


def _decompress(file: BinaryIO) -> Iterator[bytes]:
    """The content of a Zstandard file, frame by frame. Raises EOFError when the last one is cut off."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    while chunk := file.read(1 << 20):
        while chunk:
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data if frame.eof else b""
    if not frame.eof:  # the library's own reader ends silently here
        raise EOFError("it is cut off in the middle of a Zstandard frame")


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        yield rest


def read_texts(path: Path) -> Iterator[str]:
    """The `text` of every row. Raises DataError naming the line when it is missing, empty or not a string."""
    for number, row in enumerate(read_rows(path), start=1):
        text = row.get("text")
        if not isinstance(text, str) or not text:
            raise DataError(f"{path.name} line {number}: `text` must be a string that is not empty")
        yield text


def read_images(path: Path) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """(name, encoded image, description) of every sample of a tar: NNNNNN.png or .jpg followed by NNNNNN.json."""
    try:
        with tarfile.open(path) as tar:
            image: tuple[str, bytes] | None = None
            for member in tar:
                file = tar.extractfile(member)
                if file is None:
                    continue
                stem, _, suffix = member.name.rpartition(".")
                if suffix != "json":
                    image = stem, file.read()
                    continue
                where = f"{path.name} member {member.name}"
                if image is None or image[0] != stem:
                    raise DataError(f"{where}: a description must follow its image, {stem}.png or {stem}.jpg")
                yield stem, image[1], _object(file.read().decode("utf-8"), where)
                image = None
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give the data pack with --data or MUSESPARK_DATA") from None
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}") from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} must be a JSON object")
    return row
