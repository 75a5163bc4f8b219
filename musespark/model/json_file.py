"""Reading a JSON file that a stranger wrote: bounded in size and depth, no repeated keys, names safe to print."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any


def read_json_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The object in the file. Raises ValueError saying what is wrong, FileNotFoundError if there is no such file."""
    try:
        # Non-blocking, so that a pipe under this name is refused instead of waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("it is not a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(max_bytes + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if len(data) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes:,} bytes")
    return parse_json_object(data)


def parse_json_object(data: bytes) -> dict[str, Any]:
    """The object in `data`. Raises ValueError saying what is wrong."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_refuse_duplicates)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it must be a JSON object")
    return value


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers of an object with a repeated key may believe two different values."""
    result = dict(pairs)
    if len(result) != len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {show(key)} appears twice")
    return result


def show(value: object) -> str:
    """A value from a file made safe to print: ASCII, strings quoted, at most 100 characters."""
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
