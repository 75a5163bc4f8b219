"""Checksums of a checkpoint's weights: `SHA256SUMS`, in the form that `sha256sum -c` reads.

A flipped bit inside a tensor is a valid number, so nothing else would notice it. The file is written with every
checkpoint that we save and checked whenever one that has it is opened (about a second for 1.5 GB); the folders of
other writers have none.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from musespark.errors import CheckpointError

MANIFEST = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\\\0]+)")


def write_manifest(folder: Path) -> None:
    lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(folder.glob("*.safetensors"))]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")


def check_manifest(folder: Path) -> None:
    """Raises CheckpointError naming the first file that is not what it was when the manifest was written."""
    try:
        lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(
            f"{folder / MANIFEST} can't be read; restore it, or remove it to skip the check"
        ) from None
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            raise CheckpointError(f"{folder / MANIFEST} has a line that is not a checksum and a file name")
        digest, name = match.groups()
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing, but {MANIFEST} lists it")
        if _sha256(folder / name) != digest:
            raise CheckpointError(
                f"{folder / name} is damaged: its SHA-256 is not the one in {MANIFEST}; copy the checkpoint again"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
