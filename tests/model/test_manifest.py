"""Checksums: what `sha256sum` says, written with every checkpoint and checked at every opening."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from musespark.errors import CheckpointError
from musespark.model.checkpoint import open_checkpoint, save_checkpoint
from musespark.model.manifest import MANIFEST
from tests.model.files import TOY, random_tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", TOY, random_tensors())
    return tmp_path / "model"


def test_a_saved_checkpoint_carries_the_checksums_that_sha256sum_accepts(folder: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", MANIFEST], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "model.safetensors: OK\n")
    open_checkpoint(folder)


def test_one_flipped_bit_in_a_tensor_is_refused_by_name(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        open_checkpoint(folder)


def test_a_checkpoint_without_checksums_opens_unchecked(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    open_checkpoint(folder)


@pytest.mark.parametrize("line", ["x", f"{'0' * 64}  ../model.safetensors", f"{'0' * 64}  gone.safetensors"])
def test_a_manifest_that_is_not_one_is_refused(folder: Path, line: str) -> None:
    (folder / MANIFEST).write_text(line + "\n")
    with pytest.raises(CheckpointError, match=f"{MANIFEST}"):
        open_checkpoint(folder)
