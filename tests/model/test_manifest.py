"""Checksums: what `sha256sum` says, written with every checkpoint and checked at every opening."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from musespark.errors import CheckpointError
from musespark.model.checkpoint import open_checkpoint, save_checkpoint
from musespark.model.manifest import MANIFEST
from musespark.model.quantize import quantize_checkpoint
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


def test_who_passes_an_open_checkpoint_along_does_not_have_it_checked_again(folder: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(folder)
    (folder / MANIFEST).write_text(f"{'0' * 64}  model.safetensors\n")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        quantize_checkpoint(folder, tmp_path / "small", group_size=16)
    quantize_checkpoint(opened, tmp_path / "small", group_size=16)
    open_checkpoint(tmp_path / "small")


def test_unless_its_check_has_been_put_off(folder: Path, tmp_path: Path) -> None:
    (folder / MANIFEST).write_text(f"{'0' * 64}  model.safetensors\n")
    opened = open_checkpoint(folder, check_while_reading=True)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        quantize_checkpoint(opened, tmp_path / "small", group_size=16)


def test_a_checkpoint_without_checksums_opens_unchecked(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    open_checkpoint(folder)


@pytest.mark.parametrize("line", ["x", f"{'0' * 64}  ../model.safetensors", f"{'0' * 64}  gone.safetensors"])
def test_a_manifest_that_is_not_one_is_refused(folder: Path, line: str) -> None:
    (folder / MANIFEST).write_text(line + "\n")
    with pytest.raises(CheckpointError, match=f"{MANIFEST}"):
        open_checkpoint(folder)
