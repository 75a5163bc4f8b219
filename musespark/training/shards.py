"""Reads the data pack: Zstandard JSON lines and tar files of images, one checked record at a time.

Rows are data from outside: a bad one stops the run with a DataError that names the file and the row, never silently.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from musespark.errors import DataError


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of one `.jsonl.zst` file, in order. Raises DataError naming file and line."""
    try:
        with path.open("rb") as file:
            stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8", newline="\n"), start=1):
                yield _object(line, f"{path.name} line {number}")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give the data pack with --data or MUSESPARK_DATA") from None
    except (OSError, UnicodeDecodeError, zstandard.ZstdError) as error:
        raise DataError(f"{path} can't be read: {error}") from None


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
