"""What `musespark convert` does: which options belong to which layout, sizes as people write them, and a bar."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from musespark.errors import SetupError
from musespark.model.convert import Experts, FloatDtype, convert_to_hf
from musespark.model.gguf import GgufType, convert_to_gguf

DTYPES: dict[str, FloatDtype] = {"bf16": "BF16", "f32": "F32"}
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def run_convert(
    source: Path,
    target: Path,
    to: Literal["hf", "gguf"],
    *,
    dtype: str | None,
    experts: Experts | None,
    shard_size: str | None,
    type: GgufType | None,
) -> None:
    """Raises SetupError for options that the layout doesn't have, and what the two conversions raise."""
    given = {"--dtype": dtype, "--experts": experts, "--shard-size": shard_size, "--type": type}
    foreign = [name for name, value in given.items() if value is not None and (name == "--type") != (to == "gguf")]
    if foreign:
        other = {"hf": "gguf", "gguf": "hf"}[to]
        raise SetupError(f"{', '.join(foreign)} belongs to --to {other}, not to --to {to}")
    shard_bytes = None if shard_size is None else parse_size(shard_size)
    with _bar() as bar:
        task = bar.add_task("writing", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if to == "gguf":
            convert_to_gguf(source, target, type=type or "bf16", progress=progress)
            return
        new_dtype = None if dtype is None else DTYPES[dtype]
        convert_to_hf(source, target, dtype=new_dtype, experts=experts, shard_bytes=shard_bytes, progress=progress)


def parse_size(text: str) -> int:
    """Bytes of `5GB` (10^9), `4GiB` (2^30) or a plain number. Raises SetupError."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMG]i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * UNITS[(match[2] or "").upper()]) if match else 0
    if size < 1:
        raise SetupError(f"--shard-size is {text!r}; it must be a size such as 5GB, 500MB or 4GiB")
    return size


@contextmanager
def _bar() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn()) as bar:
        yield bar
