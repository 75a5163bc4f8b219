"""Checksums of a checkpoint's weights: `SHA256SUMS`, in the form that `sha256sum -c` reads.

A flipped bit inside a tensor is a valid number, so nothing else would notice it. The file is written with every
checkpoint that we save, and checked whenever one that has it is opened (about a second for 1.5 GB), or, for a runner
that reads all of it anyway, while it is read (file_reader.py); the folders of other writers have none.
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


def read_manifest(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 in hexadecimal; empty without a manifest.

    Raises CheckpointError for one that isn't valid, or that lists a file that isn't there.
    """
    try:
        lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(
            f"{folder / MANIFEST} can't be read; restore it, or remove it to skip the check"
        ) from None
    digests: dict[str, str] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            raise CheckpointError(f"{folder / MANIFEST} has a line that is not a checksum and a file name")
        digest, name = match.groups()
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing, but {MANIFEST} lists it")
        digests[name] = digest
    return digests


def check_file(path: Path, digest: str) -> None:
    """Raises CheckpointError if the file is not what it was when the manifest was written."""
    if _sha256(path) != digest:
        raise damaged(path)


def damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}; copy the checkpoint again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
