"""`musespark convert` as a person uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from musespark.chat.tokenizer import Tokenizer
from musespark.cli.convert import parse_size
from musespark.errors import SetupError
from musespark.model.checkpoint import save_checkpoint
from musespark.model.presets import preset
from tests.model.files import random_tensors


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("musespark"), "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def glimmer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, config = tmp_path_factory.mktemp("checkpoints"), preset("toy-glimmer")
    Tokenizer.bytes_only().save(folder / "tokenizer.json")
    save_checkpoint(folder / "toy", config, random_tensors(config), files={"tokenizer.json": folder / "tokenizer.json"})
    return folder / "toy"


def test_a_checkpoint_becomes_shards_and_a_file_for_llama_cpp(glimmer: Path, tmp_path: Path) -> None:
    done = convert(glimmer, tmp_path / "shards", "--to", "hf", "--dtype", "bf16", "--shard-size", "100KB")
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stdout or "━" in done.stdout
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    files = {path.name for path in (tmp_path / "shards").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) > 1
    assert {line.split()[1] for line in (tmp_path / "shards" / "SHA256SUMS").read_text().splitlines()} == files
    assert convert(tmp_path / "shards", tmp_path / "toy.gguf", "--to", "gguf", "--type", "q8_0").returncode == 0
    assert (tmp_path / "toy.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to", "gguf", "--dtype", "bf16", "--shard-size", "1GB"], "--dtype, --shard-size belongs to --to hf"),
        (["--to", "hf", "--type", "q8_0"], "--type belongs to --to gguf, not to --to hf"),
        (["--to", "hf", "--shard-size", "many"], "--shard-size is 'many'"),
    ],
)
def test_options_of_the_other_layout_are_refused(
    glimmer: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = convert(glimmer, tmp_path / "out", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert not list(tmp_path.iterdir())


def test_sizes_are_read_as_people_write_them() -> None:
    sizes = {"5GB": 5 * 10**9, "4GiB": 4 << 30, "1.5 mb": 1_500_000, "100": 100, "2kib": 2048}
    assert {text: parse_size(text) for text in sizes} == sizes


@pytest.mark.parametrize("text", ["", "0", "0.1", "-1GB", "GB", "5TB", "1e9", "5 G B", "9" * 16])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(SetupError, match="it must be a size such as 5GB"):
        parse_size(text)
