"""How a quantised folder comes about: in shards, a few rows at a time, going on after a kill, whole or not at all."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors

from musespark.errors import CheckpointError, SetupError
from musespark.model.checkpoint import open_checkpoint
from musespark.model.convert import convert_to_hf
from musespark.model.quantize import quantize_checkpoint
from musespark.model.tensor_file import TensorWriter
from tests.model.files import TOY, random_tensors, saved_toy, toy_config, write_stored

SHARD_BYTES = 100_000  # the toy quantised to 8 bits takes 354,192 bytes


def stored(folder: Path) -> dict[str, bytes]:
    """The bytes of every stored tensor, wherever they lie; a valid file by the published reader."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safetensors.safe_open(path, "np") as file:
            names = file.keys()
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        for name in names:
            begin, end = header[name]["data_offsets"]
            tensors[name] = data[start + begin : start + end]
    return tensors


def run(script: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", script], check=False, cwd=os.getcwd(), capture_output=True, text=True, **options
    )


def test_shards_hold_the_same_bytes_as_one_file_and_no_more_than_asked(tmp_path: Path) -> None:
    saved_toy(tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "one")
    quantize_checkpoint(tmp_path / "float", tmp_path / "shards", shard_bytes=SHARD_BYTES)
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert [path.name for path in shards] == [f"model-{i:05}-of-00005.safetensors" for i in range(1, 6)]
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == stored(tmp_path / "one").keys()
    assert index["metadata"]["total_size"] == sum(map(len, stored(tmp_path / "one").values()))
    assert all(path.stat().st_size < SHARD_BYTES + 20_000 for path in shards)  # and the header of each
    assert stored(tmp_path / "shards") == stored(tmp_path / "one")
    assert {line.split()[1] for line in (tmp_path / "shards" / "SHA256SUMS").read_text().splitlines()} == {
        path.name for path in shards
    }
    open_checkpoint(tmp_path / "shards")


def test_progress_counts_the_bytes_of_the_tensors(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    quantize_checkpoint(saved_toy(tmp_path / "float"), tmp_path / "small", progress=lambda *counts: seen.append(counts))
    total = sum(map(len, stored(tmp_path / "small").values()))
    assert seen[-1] == (total, total)
    assert {all_ for _, all_ in seen} == {total}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_after_a_kill_the_second_run_goes_on_from_the_whole_shards(tmp_path: Path) -> None:
    saved_toy(tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "expected", shard_bytes=SHARD_BYTES)
    script = f"""
import os, signal
from musespark.model.convert import convert_to_hf
from musespark.model.quantize import quantize_checkpoint
def progress(done, all):
    if done > all * 0.8:
        os.kill(os.getpid(), signal.SIGKILL)
source, target = {str(tmp_path / "float")!r}, {str(tmp_path / "small")!r}
quantize_checkpoint(source, target, shard_bytes={SHARD_BYTES}, progress=progress)
"""
    assert run(script).returncode == -signal.SIGKILL
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_checkpoint(tmp_path / "small")
    left = {path: path.stat().st_ino for path in (tmp_path / ".small.writing").glob("*.safetensors")}
    assert len(left) == 3
    quantize_checkpoint(tmp_path / "float", tmp_path / "small", shard_bytes=SHARD_BYTES)
    assert {path.name for path in tmp_path.iterdir()} == {"float", "small", "expected"}
    for path, inode in left.items():
        assert (tmp_path / "small" / path.name).stat().st_ino == inode
    for path in (tmp_path / "expected").iterdir():
        assert (tmp_path / "small" / path.name).read_bytes() == path.read_bytes()


def test_what_a_kill_left_is_not_taken_for_another_job(tmp_path: Path) -> None:
    saved_toy(tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "expected", bits=4, shard_bytes=SHARD_BYTES)

    def interrupt(done: int, total: int) -> None:
        if done > total * 0.9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(tmp_path / "float", tmp_path / "small", shard_bytes=SHARD_BYTES, progress=interrupt)
    assert (tmp_path / ".small.writing").is_dir()
    quantize_checkpoint(tmp_path / "float", tmp_path / "small", bits=4, shard_bytes=SHARD_BYTES)
    assert stored(tmp_path / "small") == stored(tmp_path / "expected")
    assert not (tmp_path / ".small.writing").exists()


def test_a_full_disk_is_said_and_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    source = saved_toy(tmp_path / "float")
    quantize_checkpoint(source, tmp_path / "small", bits=4)
    before = {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    script = f"""
from musespark.model.convert import convert_to_hf
from musespark.model.quantize import quantize_checkpoint
from musespark.errors import CheckpointError, SetupError
try:
    quantize_checkpoint({str(source)!r}, {str(tmp_path / "small")!r})
except CheckpointError as error:
    print(error.message)
"""
    # The limit stands in for the disk: the same error from the same call, in the middle of the tensors.
    limit = 150_000
    done = run(script, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.stdout == f"{tmp_path / 'small'} can't be written: File too large\n", done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"float", "small"}


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved_toy(tmp_path / "float")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=354_191))
    with pytest.raises(CheckpointError, match=r"small can't be written: it takes .* GB and the disk has"):
        quantize_checkpoint(source, tmp_path / "small")
    assert {path.name for path in tmp_path.iterdir()} == {"float"}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=354_192))
    quantize_checkpoint(source, tmp_path / "small")


def test_memory_stays_far_below_the_largest_tensor(tmp_path: Path) -> None:
    config = toy_config(vocab_size=200_000)
    tensors = {name: np.zeros(shape.shape, np.float32) for name, shape in random_tensors(TOY).items()}
    head = np.random.default_rng(0).standard_normal((200_000, 64), np.float32)  # 51 MB
    tensors |= {"lm_head.weight": head, "model.language_model.embed_tokens.weight": head.copy()}
    write_stored(tmp_path / "float", config, tensors)
    tracemalloc.start()
    try:
        quantize_checkpoint(tmp_path / "float", tmp_path / "small", bits=4, group_size=16)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < head.nbytes
    weight = open_checkpoint(tmp_path / "small").weight("lm_head.weight").rows(199_000, 200_000)
    assert np.abs(weight.float32() - head[199_000:]).max() < np.abs(head).max() / 7 * 0.51


def test_rows_in_any_order_and_whole_tensors_give_the_same_file(tmp_path: Path) -> None:
    array = np.arange(35, dtype=np.float32).reshape(7, 5)
    layout = {"a": ("F32", (7, 5)), "b": ("I64", (2,))}
    with TensorWriter(tmp_path / "pieces", layout) as out:
        out.write("a", array[4:], 4)
        out.write("b", np.array([7, 5]))
        out.write("a", array[:4])
    with TensorWriter(tmp_path / "whole", layout) as out:
        out.write("b", np.array([7, 5]))
        out.write("a", array)
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    with safetensors.safe_open(tmp_path / "pieces", "np") as file:
        np.testing.assert_array_equal(file.get_tensor("a"), array)
        assert file.get_tensor("b").tolist() == [7, 5]


def test_a_tensor_that_was_forgotten_is_noticed(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="16 bytes of tensors were not written"),
        TensorWriter(tmp_path / "file", {"b": ("I64", (2,))}),
    ):
        pass


def shards(folder: Path) -> tuple[Path, Path]:
    """The first two files of weights."""
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    return first, second


def missing_shard(folder: Path) -> str:
    shards(folder)[1].unlink()
    return "model-00002-of-.* can't be read: No such file"


def truncated_shard(folder: Path) -> str:
    path = shards(folder)[1]
    path.write_bytes(path.read_bytes()[:-1])
    return "in model-00002-of-.* it is truncated"


def damaged_shard(folder: Path) -> str:
    path = shards(folder)[1]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return "model-00002-of-.* is damaged"


def tensor_twice(folder: Path) -> str:
    first, second = shards(folder)
    second.write_bytes(first.read_bytes())
    return "is in model-00002-of-.*, but model.safetensors.index.json has it in 'model-00001-of-"


def wrong_dtype(folder: Path) -> str:
    path = shards(folder)[0]
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))
    (folder / "SHA256SUMS").unlink()
    return "is I32 .* expected F32 or F16 or BF16"


def unknown_model_type(folder: Path) -> str:
    edit_config(folder, model_type="muse_spork")
    return "model_type is 'muse_spork'"


def code_in_the_checkpoint(folder: Path) -> str:
    edit_config(folder, auto_map={"AutoModel": "evil.Model"})
    return "auto_map"


def contradictory_sizes(folder: Path) -> str:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit_config(folder, text_config={**text, "num_key_value_heads": 3})
    return "num_key_value_heads"


def absurd_size(folder: Path) -> str:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit_config(folder, text_config={**text, "hidden_size": -(10**30)})
    return "hidden_size"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "spoil",
    [
        *(missing_shard, truncated_shard, damaged_shard, tensor_twice, wrong_dtype),
        *(unknown_model_type, code_in_the_checkpoint, contradictory_sizes, absurd_size),
    ],
)
def test_a_source_that_is_not_sound_is_refused_by_name_and_the_old_folder_stays(
    tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    saved_toy(tmp_path / "whole")
    convert_to_hf(tmp_path / "whole", tmp_path / "float", shard_bytes=600_000)
    quantize_checkpoint(tmp_path / "float", tmp_path / "small")
    before = stored(tmp_path / "small")
    sentence = spoil(tmp_path / "float")
    with pytest.raises(SetupError, match=sentence):
        quantize_checkpoint(tmp_path / "float", tmp_path / "small")
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "float", "small"}
    assert stored(tmp_path / "small") == before
