"""Converted checkpoints hold the same weights in another spelling, and appear whole or not at all."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from musespark.errors import CheckpointError
from musespark.model.checkpoint import open_checkpoint
from musespark.model.convert import convert_to_hf, split_into_shards
from musespark.model.network import load_network
from musespark.model.presets import preset
from musespark.model.quantize import quantize_checkpoint
from musespark.model.tensors import expected_tensors
from tests.model.files import TOY, TRANSFORMERS_CLASSES, random_tensors, saved_toy, write_stored
from tests.model.test_nvfp4_format import MODELOPT, nvfp4_tensors
from tests.model.test_nvfp4_format import write as write_nvfp4

FAMILIES = ("toy", "toy-glimmer", "toy-llama4")
ROUTER = "model.language_model.layers.0.mlp.gate.weight"


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of the files, read by the published library (bfloat16 as float32)."""
    tensors: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= {name: tensor.float().numpy() for name, tensor in safetensors.torch.load_file(path).items()}
    return tensors


def logical(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.weight(name).float32() for name in checkpoint.names()}


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def rounded(array: np.ndarray) -> np.ndarray:
    return torch.from_numpy(array).bfloat16().float().numpy()


class TestQuantisedWeightsBecomeFloats:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("bits", [4, 8])
    def test_in_float32_they_are_exactly_what_the_integers_meant(self, tmp_path: Path, family: str, bits: Any) -> None:
        saved_toy(tmp_path / "float", preset(family))
        quantize_checkpoint(tmp_path / "float", tmp_path / "integers", bits=bits)
        convert_to_hf(tmp_path / "integers", tmp_path / "back", dtype="F32", experts="fused")
        assert equal(logical(tmp_path / "back"), logical(tmp_path / "integers"))
        assert stored(tmp_path / "back").keys() == expected_tensors(preset(family)).keys()
        assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())

    def test_in_bfloat16_they_are_rounded_but_for_the_router(self, tmp_path: Path) -> None:
        saved_toy(tmp_path / "float")
        quantize_checkpoint(tmp_path / "float", tmp_path / "integers", bits=4)
        convert_to_hf(tmp_path / "integers", tmp_path / "back", dtype="BF16")
        expected = {
            name: array if name.endswith((".mlp.gate.weight", ".e_score_correction_bias")) else rounded(array)
            for name, array in logical(tmp_path / "integers").items()
        }
        assert equal(logical(tmp_path / "back"), expected)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("family", FAMILIES)
    @torch.no_grad()
    def test_transformers_reads_the_folder_and_computes_what_the_integers_give(
        self, tmp_path: Path, family: str
    ) -> None:
        config = preset(family)
        tensors = {name: array * 0.1 for name, array in random_tensors(config).items()}
        write_stored(tmp_path / "float", config, tensors)
        quantize_checkpoint(tmp_path / "float", tmp_path / "integers", bits=8)
        convert_to_hf(tmp_path / "integers", tmp_path / "back", dtype="F32", experts="fused", shard_bytes=100_000)
        _, model_class = TRANSFORMERS_CLASSES[config.model_type]
        theirs = model_class.from_pretrained(tmp_path / "back", dtype=torch.float32).eval()
        ids = torch.randint(40, 320, (1, 12), generator=torch.Generator().manual_seed(0))
        expected = load_network(tmp_path / "integers")(ids)
        assert float((theirs(input_ids=ids).logits - expected).abs().max()) < 1e-4

    def test_nvfp4_loses_its_declaration_and_keeps_its_values(self, tmp_path: Path) -> None:
        write_nvfp4(tmp_path / "fp4", nvfp4_tensors(), MODELOPT)
        convert_to_hf(tmp_path / "fp4", tmp_path / "back", dtype="F32")
        assert equal(stored(tmp_path / "back"), logical(tmp_path / "fp4"))
        assert not (tmp_path / "back" / "hf_quant_config.json").exists()

    def test_without_a_dtype_they_stay_as_they_are_stored(self, tmp_path: Path) -> None:
        saved_toy(tmp_path / "float")
        quantize_checkpoint(tmp_path / "float", tmp_path / "integers", bits=4)
        convert_to_hf(tmp_path / "integers", tmp_path / "copy", shard_bytes=50_000)
        before, after = (open_checkpoint(tmp_path / name) for name in ("integers", "copy"))
        assert set(before.stored_names()) == set(after.stored_names())
        for name in before.stored_names():
            assert before.tensor(name).dtype == after.tensor(name).dtype
            assert np.array_equal(before.tensor(name).data, after.tensor(name).data)
        assert (tmp_path / "copy" / "model_card.md").read_text() == "# toy\n"

    def test_their_experts_are_respelled_only_as_floats(self, tmp_path: Path) -> None:
        saved_toy(tmp_path / "float")
        quantize_checkpoint(tmp_path / "float", tmp_path / "integers", bits=8)
        with pytest.raises(CheckpointError, match="quantised, to 8 bits; its experts can be fused only as floats"):
            convert_to_hf(tmp_path / "integers", tmp_path / "back", experts="fused")


class TestExperts:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_one_by_one_and_fused_again_is_the_same_file(self, tmp_path: Path, family: str) -> None:
        saved_toy(tmp_path / "fused", preset(family))
        convert_to_hf(tmp_path / "fused", tmp_path / "unfused", experts="unfused")
        assert equal(logical(tmp_path / "unfused"), logical(tmp_path / "fused"))
        assert not any(name.endswith("experts.down_proj") for name in stored(tmp_path / "unfused"))
        convert_to_hf(tmp_path / "unfused", tmp_path / "again", experts="fused")
        files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("fused", "again")]
        assert files[0] == files[1]

    def test_of_muse_spark_gate_rows_come_before_up_rows(self, tmp_path: Path) -> None:
        saved_toy(tmp_path / "fused")
        convert_to_hf(tmp_path / "fused", tmp_path / "unfused", experts="unfused")
        prefix, wide = "model.language_model.layers.1.mlp.experts", TOY.text.moe_intermediate_size
        fused, one_by_one = random_tensors()[f"{prefix}.gate_up_proj"], stored(tmp_path / "unfused")
        for e, matrix in enumerate(fused):
            np.testing.assert_array_equal(one_by_one[f"{prefix}.{e}.gate_proj.weight"], matrix[:wide])
            np.testing.assert_array_equal(one_by_one[f"{prefix}.{e}.up_proj.weight"], matrix[wide:])

    def test_of_llama4_are_turned_around(self, tmp_path: Path) -> None:
        config = preset("toy-llama4")
        saved_toy(tmp_path / "fused", config)
        convert_to_hf(tmp_path / "fused", tmp_path / "unfused", experts="unfused")
        prefix, wide = "language_model.model.layers.1.feed_forward.experts", config.text.moe_intermediate_size
        fused, one_by_one = random_tensors(config), stored(tmp_path / "unfused")
        np.testing.assert_array_equal(
            one_by_one[f"{prefix}.2.up_proj.weight"], fused[f"{prefix}.gate_up_proj"][2, :, wide:].T
        )
        np.testing.assert_array_equal(one_by_one[f"{prefix}.3.down_proj.weight"], fused[f"{prefix}.down_proj"][3].T)


class TestTypes:
    def test_float16_is_kept_without_a_dtype_and_converted_with_one(self, tmp_path: Path) -> None:
        tensors = {name: array.astype(np.float16) for name, array in random_tensors().items()}
        write_stored(tmp_path / "half", TOY, tensors, dtype="float16")
        convert_to_hf(tmp_path / "half", tmp_path / "same")
        assert open_checkpoint(tmp_path / "same").tensor("lm_head.weight").dtype == "F16"
        convert_to_hf(tmp_path / "half", tmp_path / "wide", dtype="F32", experts="unfused")
        assert equal(logical(tmp_path / "wide"), {name: array.astype(np.float32) for name, array in tensors.items()})
        assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"

    def test_the_audio_tower_that_we_do_not_run_is_kept(self, tmp_path: Path) -> None:
        audio = {"model.audio_tower.norm.weight": np.arange(3, dtype=np.float32) / 3}
        write_stored(tmp_path / "audio", TOY, random_tensors() | audio)
        convert_to_hf(tmp_path / "audio", tmp_path / "copy", dtype="BF16", experts="unfused")
        name, values = next(iter(audio.items()))
        np.testing.assert_array_equal(stored(tmp_path / "copy")[name], rounded(values))


class TestShards:
    def test_files_hold_at_most_the_size_and_the_index_lists_all(self, tmp_path: Path) -> None:
        saved_toy(tmp_path / "one")
        convert_to_hf(tmp_path / "one", tmp_path / "many", shard_bytes=100_000)
        index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in random_tensors().values())
        shards = sorted((tmp_path / "many").glob("*.safetensors"))
        assert [shard.name for shard in shards] == [
            f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))
        ]
        for shard in shards:
            tensors = safetensors.numpy.load_file(shard)
            assert sum(array.nbytes for array in tensors.values()) <= 100_000 or len(tensors) == 1
            assert all(index["weight_map"][name] == shard.name for name in tensors)
        assert equal(stored(tmp_path / "many"), random_tensors())

    def test_and_back_is_the_same_file(self, tmp_path: Path) -> None:
        saved_toy(tmp_path / "one")
        convert_to_hf(tmp_path / "one", tmp_path / "many", shard_bytes=100_000)
        convert_to_hf(tmp_path / "many", tmp_path / "again")
        files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "again")]
        assert files[0] == files[1]
        assert not list((tmp_path / "again").glob("*.json.index*"))

    @pytest.mark.parametrize(
        ("limit", "groups"),
        [(None, [["a", "b", "c"]]), (9, [["a", "b"], ["c"]]), (8, [["a"], ["b"], ["c"]]), (1, [["a"], ["b"], ["c"]])],
    )
    def test_are_filled_in_order(self, limit: int | None, groups: list[list[str]]) -> None:
        assert list(split_into_shards({"a": 5, "b": 4, "c": 6}, limit).values()) == groups

    def test_too_many_are_refused(self) -> None:
        sizes = {str(i): 1 for i in range(4097)}
        assert len(split_into_shards(dict.fromkeys(list(sizes)[:4096], 1), 1)) == 4096
        with pytest.raises(CheckpointError, match="would be 4,097 files; at most 4,096"):
            split_into_shards(sizes, 1)


def run_python(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, **options)


class TestAppearsWholeOrNotAtAll:
    def killed(self, tmp_path: Path, after: int) -> None:
        """A conversion to shards that is killed once `after` bytes were asked for."""
        script = f"""
import os, signal
from musespark.model.convert import convert_to_hf
def progress(done, total):
    if done > {after}:
        os.kill(os.getpid(), signal.SIGKILL)
convert_to_hf({str(tmp_path / "one")!r}, {str(tmp_path / "out")!r}, shard_bytes=100_000, progress=progress)
"""
        assert run_python(script).returncode == -signal.SIGKILL

    def test_a_kill_leaves_the_old_folder_and_the_next_run_keeps_whole_shards(self, tmp_path: Path) -> None:
        saved_toy(tmp_path / "one")
        convert_to_hf(tmp_path / "one", tmp_path / "out", dtype="BF16")
        old = stored(tmp_path / "out")
        self.killed(tmp_path, 350_000)
        assert equal(stored(tmp_path / "out"), old)
        begun = {path.name: path.stat() for path in (tmp_path / ".out.writing").glob("*.safetensors")}
        assert len(begun) >= 2
        convert_to_hf(tmp_path / "one", tmp_path / "out", shard_bytes=100_000)
        assert equal(stored(tmp_path / "out"), random_tensors())
        for name, status in begun.items():
            now = (tmp_path / "out" / name).stat()
            assert (now.st_ino, now.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out"]
        assert not list((tmp_path / "out").glob(".*"))
        assert not list((tmp_path / "out").glob("*.partial"))

    @pytest.mark.parametrize("change", ["options", "source"])
    def test_another_conversion_keeps_nothing_of_a_killed_one(self, tmp_path: Path, change: str) -> None:
        saved_toy(tmp_path / "one")
        self.killed(tmp_path, 350_000)
        expected = random_tensors()
        if change == "source":
            write_stored(tmp_path / "one", TOY, expected := random_tensors(seed=1))
            (tmp_path / "one" / "SHA256SUMS").unlink()
        convert_to_hf(tmp_path / "one", tmp_path / "out", shard_bytes=100_000 if change == "source" else 90_000)
        assert equal(stored(tmp_path / "out"), expected)

    def test_ctrl_c_keeps_whole_shards_for_the_next_run(self, tmp_path: Path) -> None:
        saved_toy(tmp_path / "one")

        def interrupt(done: int, _: int) -> None:
            if done > 350_000:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert_to_hf(tmp_path / "one", tmp_path / "out", shard_bytes=100_000, progress=interrupt)
        seen: list[int] = []
        convert_to_hf(
            tmp_path / "one", tmp_path / "out", shard_bytes=100_000, progress=lambda done, _: seen.append(done)
        )
        assert seen[0] > 100_000  # it went on where the first had stopped
        assert equal(stored(tmp_path / "out"), random_tensors())

    @pytest.mark.parametrize("limit", [1000, 60_000])
    def test_a_disk_that_takes_no_more_is_said_and_leaves_nothing(self, tmp_path: Path, limit: int) -> None:
        saved_toy(tmp_path / "one")
        convert_to_hf(tmp_path / "one", tmp_path / "out", dtype="BF16")
        old = stored(tmp_path / "out")

        def no_large_files() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # or the write that doesn't fit would end the process
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        done = run_python(
            f"from musespark.model.convert import convert_to_hf\n"
            f"convert_to_hf({str(tmp_path / 'one')!r}, {str(tmp_path / 'out')!r})",
            preexec_fn=no_large_files,
        )
        assert "out can't be written: File too large" in done.stderr
        assert equal(stored(tmp_path / "out"), old)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out"]

    def test_what_cannot_fit_is_refused_before_it_is_begun(self, tmp_path: Path) -> None:
        """A sparse checkpoint larger than the disk is free."""
        free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
        data = preset("toy-glimmer").to_dict()
        data["vision_config"] = None
        vocab_size = 1 << 22  # the most there may be; embedding and head are together four times what is free
        data["text_config"] |= {"vocab_size": vocab_size, "hidden_size": free // (2 * vocab_size) + 1}
        config = type(TOY).from_dict(data)
        (tmp_path / "huge").mkdir()
        (tmp_path / "huge" / "config.json").write_text(json.dumps(data))
        sparse_file(tmp_path / "huge" / "model.safetensors", expected_tensors(config))
        with pytest.raises(
            CheckpointError, match=r"out can't be written: it takes [\d,.]+ GB and the disk has [\d,.]+ GB"
        ):
            convert_to_hf(tmp_path / "huge", tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["huge"]

    def test_the_source_itself_is_no_target(self, tmp_path: Path) -> None:
        saved_toy(tmp_path / "one")
        with pytest.raises(CheckpointError, match="is the source itself"):
            convert_to_hf(tmp_path / "one", tmp_path / "one" / ".." / "one", dtype="BF16")


def sparse_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Zeros in float32 that take no room, at an odd place: whoever looks at a tensor copies it."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape, dtype=object))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * ((1 - len(text)) % 4)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def test_progress_counts_every_byte_up_to_all(tmp_path: Path) -> None:
    saved_toy(tmp_path / "one")
    seen: list[tuple[int, int]] = []
    report: Callable[[int, int], None] = lambda done, total: seen.append((done, total))  # noqa: E731
    convert_to_hf(tmp_path / "one", tmp_path / "out", dtype="BF16", progress=report)
    total = sum(array.nbytes for array in stored(tmp_path / "out").values()) // 2 + 2 * routers()
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def routers() -> int:
    """Half the bytes of what bfloat16 leaves in float32."""
    return sum(a.nbytes // 4 for name, a in random_tensors().items() if "mlp.gate." in name)
