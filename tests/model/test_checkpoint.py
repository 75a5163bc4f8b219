"""Opening and saving checkpoint folders: every tensor accounted for, strangers' files refused, crashes survived."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import MuseSparkConfig, MuseSparkForConditionalGeneration

from musespark.errors import CheckpointError, ConfigError
from musespark.model.checkpoint import Plain, Quantized, open_checkpoint, save_checkpoint
from musespark.model.config import ModelConfig
from musespark.model.generation import GenerationDefaults
from musespark.model.pack_quantized import Quantization
from musespark.model.tensors import expert_parts, is_fused_experts
from tests.model.files import TOY, random_tensors, saved_toy, toy_config

LAYER = "model.language_model.layers.0."
GATE_UP = f"{LAYER}mlp.experts.gate_up_proj"


def write_folder(folder: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> Path:
    """A checkpoint of the toy preset written by the published library, whatever `tensors` it is given."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**TOY.to_dict(), **config}))
    safetensors.numpy.save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_shards(folder: Path, tensors: Mapping[str, np.ndarray], num_shards: int = 3) -> dict[str, str]:
    """The same in shards; returns the index's weight_map."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TOY.to_dict()))
    weight_map = {
        name: f"model-{i % num_shards + 1:05}-of-{num_shards:05}.safetensors" for i, name in enumerate(tensors)
    }
    for shard in set(weight_map.values()):
        safetensors.numpy.save_file({n: tensors[n] for n in tensors if weight_map[n] == shard}, folder / shard)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Any) -> None:
    content = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


def holds(folder: Path, tensors: Mapping[str, np.ndarray]) -> bool:
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.names()) == set(tensors)
    return all(np.array_equal(checkpoint.weight(name).float32(), tensors[name]) for name in tensors)


class TestRoundTrips:
    def test_what_is_saved_is_read_back(self, tmp_path: Path) -> None:
        tensors = random_tensors()
        defaults = GenerationDefaults((1, 6), temperature=0.6, top_p=0.95)
        files = {"tokenizer.json": b"{}", "model_card.md": "# toy"}
        save_checkpoint(tmp_path / "toy", TOY, tensors, generation=defaults, files=files)
        assert holds(tmp_path / "toy", tensors)
        checkpoint = open_checkpoint(tmp_path / "toy")
        assert (checkpoint.config, checkpoint.generation) == (TOY, defaults)
        assert (tmp_path / "toy" / "model_card.md").read_text() == "# toy"

    def test_torch_tensors_of_each_float_type_are_read_back(self, tmp_path: Path) -> None:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            tensors = {name: torch.from_numpy(array).to(dtype) for name, array in random_tensors().items()}
            save_checkpoint(tmp_path / "toy", TOY, tensors)
            assert holds(tmp_path / "toy", {name: tensor.float().numpy() for name, tensor in tensors.items()})

    def test_bf16_export_rounds_all_but_the_router(self, tmp_path: Path) -> None:
        tensors = random_tensors()
        save_checkpoint(tmp_path / "toy", TOY, tensors, dtype="BF16")
        checkpoint = open_checkpoint(tmp_path / "toy")
        for name, array in tensors.items():
            router = name.endswith((".mlp.gate.weight", ".mlp.gate.e_score_correction_bias"))
            assert checkpoint.tensor(name).dtype == ("F32" if router else "BF16")
            expected = array if router else torch.from_numpy(array).bfloat16().float().numpy()
            np.testing.assert_array_equal(checkpoint.weight(name).float32(), expected)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_transformers_loads_what_we_save_and_we_load_what_it_saves(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        theirs = MuseSparkForConditionalGeneration(MuseSparkConfig.from_dict(TOY.to_dict()))
        theirs.save_pretrained(tmp_path / "theirs")  # with the audio tower, which we skip
        checkpoint = open_checkpoint(tmp_path / "theirs")
        tensors = {name: checkpoint.weight(name).float32() for name in checkpoint.names()}
        state = theirs.state_dict()
        assert all(np.array_equal(tensors[name], state[name].numpy()) for name in tensors)
        assert {name for name in state if name not in tensors} == {
            n for n in state if n.startswith("model.audio_tower.")
        }

        save_checkpoint(tmp_path / "ours", checkpoint.config, tensors)
        loaded = MuseSparkForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype=torch.float32).state_dict()
        assert all(np.array_equal(loaded[name].numpy(), tensors[name]) for name in tensors)

    def test_a_text_only_model_with_a_dense_layer(self, tmp_path: Path) -> None:
        data = toy_config(mlp_layer_types=["dense", "sparse"]).to_dict()
        config = ModelConfig.from_dict({**data, "vision_config": None})
        tensors = random_tensors(config)
        assert not any(name.startswith("model.vision") for name in tensors)
        save_checkpoint(tmp_path / "text", config, tensors)
        assert holds(tmp_path / "text", tensors)

    def test_shards_are_one_checkpoint(self, tmp_path: Path) -> None:
        tensors = random_tensors()
        write_shards(tmp_path / "sharded", tensors)
        assert holds(tmp_path / "sharded", tensors)

    def test_experts_stored_one_by_one_appear_under_the_fused_name(self, tmp_path: Path) -> None:
        fused = random_tensors()
        stored = {name: array for name, array in fused.items() if not is_fused_experts(name)}
        for name in filter(is_fused_experts, fused):
            prefix, wide = name.rpartition(".")[0], TOY.text.moe_intermediate_size
            for e, matrix in enumerate(fused[name]):
                if name.endswith("gate_up_proj"):
                    stored[f"{prefix}.{e}.gate_proj.weight"] = np.ascontiguousarray(matrix[:wide])  # gate comes first
                    stored[f"{prefix}.{e}.up_proj.weight"] = np.ascontiguousarray(matrix[wide:])
                else:
                    stored[f"{prefix}.{e}.down_proj.weight"] = np.ascontiguousarray(matrix)
        assert holds(write_folder(tmp_path / "unfused", stored), fused)

    def test_tensors_are_views_into_the_file_and_read_only(self, tmp_path: Path) -> None:
        weight = open_checkpoint(saved_toy(tmp_path / "toy")).weight("lm_head.weight")
        assert isinstance(weight, Plain)
        assert not weight.raw.data.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            weight.raw.data[0, 0] = 1


class TestAccounting:
    def refusal(self, folder: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> str:
        write_folder(folder / "bad", tensors, **config)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(folder / "bad")
        return str(caught.value)

    def test_a_missing_tensor_is_named(self, tmp_path: Path) -> None:
        tensors = random_tensors()
        del tensors["model.language_model.norm.weight"]
        assert "Missing: model.language_model.norm.weight." in self.refusal(tmp_path, tensors)

    def test_an_unexpected_tensor_is_named(self, tmp_path: Path) -> None:
        # The post-attention norm of this family has no weight: a file with one is of another architecture.
        name = f"{LAYER}post_attention_layernorm.weight"
        assert f"Unexpected: '{name}'." in self.refusal(tmp_path, random_tensors() | {name: np.zeros(64, np.float32)})

    def test_a_wrong_shape_is_shown_beside_the_right_one(self, tmp_path: Path) -> None:
        tensors = random_tensors()
        tensors["lm_head.weight"] = np.zeros((320, 63), np.float32)
        message = self.refusal(tmp_path, tensors)
        assert "lm_head.weight is F32 [320, 63] in model.safetensors, expected F32 or F16 or BF16 [320, 64]" in message

    def test_integers_where_floats_belong_are_refused(self, tmp_path: Path) -> None:
        tensors = random_tensors()
        tensors["lm_head.weight"] = np.zeros((320, 64), np.int8)
        assert "lm_head.weight is I8 [320, 64]" in self.refusal(tmp_path, tensors)

    def test_a_long_list_is_cut_with_its_length(self, tmp_path: Path) -> None:
        assert f"and {len(random_tensors()) - 8 - 1} more" in self.refusal(
            tmp_path, {"lm_head.weight": random_tensors()["lm_head.weight"]}
        )

    def test_a_missing_expert_is_named(self, tmp_path: Path) -> None:
        tensors = random_tensors()
        fused = tensors.pop(GATE_UP)
        parts = expert_parts(GATE_UP, fused.shape)
        tensors |= {part: np.zeros(shape, np.float32) for part, shape in parts if part != parts[3][0]}
        assert f"Missing: {LAYER}mlp.experts.1.up_proj.weight." in self.refusal(tmp_path, tensors)

    def test_experts_of_different_types_are_refused(self, tmp_path: Path) -> None:
        tensors = random_tensors()
        fused = tensors.pop(GATE_UP)
        for i, (part, shape) in enumerate(expert_parts(GATE_UP, fused.shape)):
            tensors[part] = np.zeros(shape, np.float16 if i == 2 else np.float32)
        assert f"{GATE_UP} has its experts in more than one type" in self.refusal(tmp_path, tensors)

    def test_saving_tensors_that_do_not_fit_is_refused_and_writes_nothing(self, tmp_path: Path) -> None:
        tensors: dict[str, Any] = random_tensors()
        for bad in (
            tensors | {"extra": np.zeros(1, np.float32)},
            {name: array for name, array in tensors.items() if name != "lm_head.weight"},
            tensors | {"lm_head.weight": np.zeros((2, 2), np.float32)},
            tensors | {"lm_head.weight": np.zeros((320, 64), np.int8)},
        ):
            with pytest.raises(CheckpointError, match=r"extra|lm_head\.weight"):
                save_checkpoint(tmp_path / "toy", TOY, bad)
        assert not any(tmp_path.iterdir())


PACKED = "lm_head.weight"
QUANTIZATION = Quantization(bits=4, group_size=32).to_dict(())


def packed_tensors() -> dict[str, np.ndarray]:
    tensors = random_tensors()
    del tensors[PACKED]
    return tensors | {
        f"{PACKED}_packed": np.full((320, 8), 0x76543210, np.int32),
        f"{PACKED}_scale": np.array([[0.5, 2.0]], np.float32).repeat(320, axis=0),
        f"{PACKED}_shape": np.array([320, 64], np.int64),
    }


class TestPackedTensors:
    def test_are_read_as_integers_and_scales(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "packed", packed_tensors(), quantization_config=QUANTIZATION)
        checkpoint = open_checkpoint(folder)
        weight = checkpoint.weight(PACKED)
        assert isinstance(weight, Quantized)
        assert (weight.bits, weight.group_size, weight.packed.shape) == (4, 32, (320, 64))
        assert weight.packed[5, :9].tolist() == [-8, -7, -6, -5, -4, -3, -2, -1, -8]  # nibbles 0, 1, 2 … less 8
        assert weight.float32()[5, [0, 31, 32, 63]].tolist() == [-4.0, -0.5, -16.0, -2.0]
        assert isinstance(checkpoint.weight("model.language_model.norm.weight"), Plain)

    def test_without_a_quantization_config_are_not_understood(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "packed", packed_tensors())
        with pytest.raises(CheckpointError, match=r"Missing: lm_head\.weight\. Unexpected: .*'lm_head\.weight_packed'"):
            open_checkpoint(tmp_path / "packed")

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("packed", np.zeros((320, 16), np.int32), r"packed is I32 \[320, 16\] .* expected I32 \[320, 8\]"),
            ("packed", np.zeros((320, 8), np.float32), "packed is F32"),
            ("scale", np.zeros((320, 1), np.float32), r"scale is F32 \[320, 1\] .* \[320, 2\]"),
            ("scale", np.zeros((320, 2), np.int32), "scale is I32"),
            ("shape", np.array([64, 320], np.int64), r"shape says \[64, 320\], expected \[320, 64\]"),
            ("shape", np.array([320, 64, 1], np.int64), r"shape is I64 \[3\]"),
            ("zero_point", np.zeros((40, 2), np.int32), "Unexpected: 'lm_head.weight_zero_point'"),
            ("g_idx", np.zeros(64, np.int32), "Unexpected: 'lm_head.weight_g_idx'"),
        ],
    )
    def test_that_contradict_each_other_are_refused(
        self, tmp_path: Path, name: str, value: np.ndarray, message: str
    ) -> None:
        tensors = packed_tensors() | {f"{PACKED}_{name}": value}
        write_folder(tmp_path / "packed", tensors, quantization_config=QUANTIZATION)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / "packed")

    def test_of_which_one_is_missing_are_refused(self, tmp_path: Path) -> None:
        tensors = packed_tensors()
        del tensors[f"{PACKED}_scale"]
        write_folder(tmp_path / "packed", tensors, quantization_config=QUANTIZATION)
        with pytest.raises(CheckpointError, match=r"Missing: lm_head\.weight_scale"):
            open_checkpoint(tmp_path / "packed")

    def test_whose_scales_are_not_finite_are_refused_when_read(self, tmp_path: Path) -> None:
        tensors = packed_tensors()
        tensors[f"{PACKED}_scale"][7, 1] = np.nan
        write_folder(tmp_path / "packed", tensors, quantization_config=QUANTIZATION)
        with pytest.raises(CheckpointError, match=r"lm_head\.weight_scale in model\.safetensors holds NaN"):
            open_checkpoint(tmp_path / "packed").weight(PACKED)

    def test_of_groups_that_do_not_divide_the_inputs_are_refused(self, tmp_path: Path) -> None:
        quantization = Quantization(bits=4, group_size=48).to_dict(())
        write_folder(tmp_path / "packed", packed_tensors(), quantization_config=quantization)
        with pytest.raises(CheckpointError, match=r"lm_head\.weight has 64 inputs, not a multiple of group_size 48"):
            open_checkpoint(tmp_path / "packed")


class TestHostileFolders:
    @pytest.mark.parametrize("name", ["a.bin", "b.pt", "c.PTH", "d.ckpt", "e.pickle", "f.pkl"])
    def test_pickles_are_refused_by_name(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
        with pytest.raises(CheckpointError, match="is a pickle by its name"):
            open_checkpoint(tmp_path / name)
        (tmp_path / "config.json").write_text(json.dumps(TOY.to_dict()))
        with pytest.raises(CheckpointError, match=f"{name}.* is a pickle by its name"):
            open_checkpoint(tmp_path)

    @pytest.mark.parametrize(
        "shard",
        [
            "../evil.safetensors",
            "/etc/evil.safetensors",
            "a/b.safetensors",
            "a\\b.safetensors",
            "..",
            "",
            ".safetensors",
            "nul\0.safetensors",
            "C:x.safetensors",
            "x" * 5000 + ".safetensors",
            "weights.bin",
            "model.safetensors.gz",
            7,
            None,
            ["model.safetensors"],
        ],
    )
    def test_an_index_names_only_safetensors_in_its_own_folder(self, tmp_path: Path, shard: Any) -> None:
        (tmp_path / "evil.safetensors").write_bytes(b"not ours")
        weight_map = write_shards(tmp_path / "sharded", random_tensors())
        write_index(tmp_path / "sharded", weight_map | {"lm_head.weight": shard})
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / "sharded")

    def test_an_index_that_contradicts_its_shards_is_refused(self, tmp_path: Path) -> None:
        folder = tmp_path / "sharded"
        good = write_shards(folder, random_tensors())
        first, second = sorted(set(good.values()))[:2]
        moved = next(name for name, shard in good.items() if shard == first)
        for weight_map, message in (
            (good | {moved: second}, "is in model-00001-of-00003.safetensors, but"),
            ({name: shard for name, shard in good.items() if name != moved}, "has it in None"),
            (good | {"x": first}, "tensor 'x' is not in model-00001-of-00003.safetensors"),
            (good | {"x": "missing.safetensors"}, "missing.safetensors can't be read"),
            ([], "weight_map"),
            ({}, "weight_map"),
        ):
            write_index(folder, weight_map)
            with pytest.raises(CheckpointError, match=message):
                open_checkpoint(folder)

    def test_a_missing_shard_is_named(self, tmp_path: Path) -> None:
        weight_map = write_shards(tmp_path / "sharded", random_tensors())
        shard = weight_map["lm_head.weight"]
        (tmp_path / "sharded" / shard).unlink()
        with pytest.raises(CheckpointError, match=f"{shard} can't be read: No such file"):
            open_checkpoint(tmp_path / "sharded")

    def test_one_file_beside_an_index_is_ambiguous(self, tmp_path: Path) -> None:
        write_shards(tmp_path / "both", random_tensors())
        write_folder(tmp_path / "both", random_tensors())
        with pytest.raises(CheckpointError, match="holds both"):
            open_checkpoint(tmp_path / "both")

    @pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":1,"a":1}'])
    def test_broken_json_beside_the_weights_is_refused_by_name(self, tmp_path: Path, content: bytes) -> None:
        folder = saved_toy(tmp_path / "toy")
        (folder / "generation_config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"generation_config\.json"):
            open_checkpoint(folder)
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "generation_config.json").unlink()
        (folder / "model.safetensors.index.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"index\.json"):
            open_checkpoint(folder)
        (folder / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"config\.json"):
            open_checkpoint(folder)

    def test_no_folder_no_config_no_weights(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="is not a folder"):
            open_checkpoint(tmp_path / "missing")
        with pytest.raises(ConfigError, match=r"config\.json does not exist"):
            open_checkpoint(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(TOY.to_dict()))
        with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
            open_checkpoint(tmp_path)

    def test_a_file_cut_off_anywhere_is_refused(self, tmp_path: Path) -> None:
        folder = saved_toy(tmp_path / "toy")
        whole = (folder / "model.safetensors").read_bytes()
        for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
            (folder / "model.safetensors").write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=r"model\.safetensors"):
                open_checkpoint(folder)

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
    @given(st.data())
    def test_changed_header_bytes_open_or_are_refused(self, tmp_path: Path, data: st.DataObject) -> None:
        folder = tmp_path / "toy"
        if not folder.exists():
            saved_toy(folder)
            (folder / "whole").write_bytes((folder / "model.safetensors").read_bytes())
        content = bytearray((folder / "whole").read_bytes())
        end = 8 + int.from_bytes(content[:8], "little")
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, end - 1))] = data.draw(st.sampled_from(list(b'0129-.eE[]{}:,"\\ F\0\xff')))
        (folder / "model.safetensors").write_bytes(content)
        with contextlib.suppress(CheckpointError):  # and no other error
            open_checkpoint(folder)


class TestSavingIsAtomic:
    def test_an_error_halfway_leaves_the_old_checkpoint_and_no_litter(self, tmp_path: Path) -> None:
        folder = saved_toy(tmp_path / "toy")
        with pytest.raises(CheckpointError, match="can't be written: No such file"):
            save_checkpoint(folder, TOY, random_tensors(seed=1), files={"tokenizer.json": tmp_path / "missing"})
        assert holds(folder, random_tensors())
        assert [path.name for path in tmp_path.iterdir()] == ["toy"]

    def test_an_old_checkpoint_is_replaced_as_a_whole(self, tmp_path: Path) -> None:
        folder = saved_toy(tmp_path / "toy")
        save_checkpoint(folder, TOY, random_tensors(seed=1))
        assert holds(folder, random_tensors(seed=1))
        assert not (folder / "model_card.md").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["toy"]

    def test_an_open_checkpoint_outlives_its_replacement(self, tmp_path: Path) -> None:
        folder = saved_toy(tmp_path / "toy")
        opened = open_checkpoint(folder)
        save_checkpoint(folder, TOY, random_tensors(seed=1))
        np.testing.assert_array_equal(opened.weight("lm_head.weight").float32(), random_tensors()["lm_head.weight"])

    def test_a_folder_that_is_no_checkpoint_is_never_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            save_checkpoint(tmp_path / "photos", TOY, random_tensors())
        assert (tmp_path / "photos" / "cat.png").read_bytes() == b"meow"
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            save_checkpoint(tmp_path / "photos" / "cat.png", TOY, random_tensors())
        (tmp_path / "new").mkdir()
        saved_toy(tmp_path / "new")  # an empty folder is taken

    def test_a_place_that_cannot_be_written_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(CheckpointError, match="toy can't be written: "):
            saved_toy(tmp_path / "file" / "toy")

    def test_a_kill_in_the_middle_leaves_the_old_checkpoint(self, tmp_path: Path) -> None:
        folder = saved_toy(tmp_path / "toy")
        script = f"""
import os, signal
from pathlib import Path
from musespark.model import tensor_file
from tests.model.files import saved_toy, TOY, random_tensors
from musespark.model.checkpoint import save_checkpoint
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # the weights are written, but not in place
save_checkpoint(Path({str(folder)!r}), TOY, random_tensors(seed=1))
"""
        killed = subprocess.run([sys.executable, "-c", script], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert holds(folder, random_tensors())
        saved_toy(folder)  # and what the dead process left doesn't stand in the way
        assert [path.name for path in tmp_path.iterdir()] == ["toy"]
