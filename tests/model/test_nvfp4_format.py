"""NVFP4 as ModelOpt writes it for Muse Spark: routed experts in four bits, everything else as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musespark.errors import CheckpointError
from musespark.model.checkpoint import Plain, open_checkpoint
from musespark.model.presets import preset
from musespark.model.weights import Nvfp4
from tests.model.files import TOY, random_tensors, toy_config, write_stored

EXPERTS = "model.language_model.layers.1.mlp.experts."
GATE_UP, DOWN = f"{EXPERTS}gate_up_proj", f"{EXPERTS}down_proj"  # (E, 2I, H) = (4, 96, 32), (E, H, I) = (4, 32, 48)
FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
MODELOPT: dict[str, Any] = {
    "producer": {"name": "modelopt", "version": "0.41.0"},
    "quantization": {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": "FP8",
        "group_size": 16,
        "exclude_modules": ["lm_head", "model.language_model.layers.0*", "model.vision_tower*"],
    },
}
IN_CONFIG = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", "model.language_model.layers.0*"]}


def nvfp4_tensors() -> dict[str, Any]:
    """Layer 1 in four bits; layer 0, which is excluded, in floats."""
    random = np.random.default_rng(0)

    def scales(*shape: int) -> torch.Tensor:
        return torch.from_numpy(random.uniform(0.1, 400, shape)).to(torch.float8_e4m3fn)

    return random_tensors() | {
        GATE_UP: random.integers(0, 256, (4, 96, 16), np.uint8),
        f"{GATE_UP}_weight_scale": scales(4, 96, 2),
        f"{GATE_UP}_weight_scale_2": random.uniform(1e-4, 1e-2, (4, 2)).astype(np.float32),
        f"{GATE_UP}_input_scale": np.ones((4, 2), np.float32),
        DOWN: random.integers(0, 256, (4, 32, 24), np.uint8),
        f"{DOWN}_weight_scale": scales(4, 32, 3),
        f"{DOWN}_weight_scale_2": random.uniform(1e-4, 1e-2, 4).astype(np.float32),
        f"{DOWN}_input_scale": np.ones(4, np.float32),
    }


def write(folder: Path, tensors: dict[str, Any], modelopt: Any = MODELOPT, **config: Any) -> Path:
    write_stored(folder, TOY, {name: value for name, value in tensors.items() if value is not None}, **config)
    if modelopt is not None:
        content = modelopt if isinstance(modelopt, bytes) else json.dumps(modelopt).encode()
        (folder / "hf_quant_config.json").write_bytes(content)
    return folder


def by_hand(tensors: dict[str, Any], name: str) -> np.ndarray:
    """Each value from its definition: nibble · block scale · scale of the tensor's half, rounded once."""
    codes, scales, tops = tensors[name], tensors[f"{name}_weight_scale"].float(), tensors[f"{name}_weight_scale_2"]
    num_experts, out, half_width = codes.shape
    result = np.empty((num_experts, out, 2 * half_width), np.float32)
    for e, o, i in np.ndindex(result.shape):
        byte = int(codes[e, o, i // 2])
        nibble = byte >> 4 if i % 2 else byte & 15
        top = tops[e] if tops.ndim == 1 else tops[e, 0 if o < out // 2 else 1]  # gate half, up half
        result[e, o, i] = FP4[nibble] * scales[e, o, i // 16].item() * float(top)
    return result


class TestReading:
    @pytest.mark.parametrize("name", [GATE_UP, DOWN])
    def test_values_are_nibble_times_block_scale_times_tensor_scale(self, tmp_path: Path, name: str) -> None:
        tensors = nvfp4_tensors()
        checkpoint = open_checkpoint(write(tmp_path / "toy", tensors))
        weight, expected = checkpoint.weight(name), by_hand(tensors, name)
        assert isinstance(weight, Nvfp4)
        np.testing.assert_array_equal(weight.float32(), expected)
        np.testing.assert_array_equal(weight.expert(2).float32(), expected[2])
        np.testing.assert_array_equal(weight.expert(1).rows(15, 17).float32(), expected[1, 15:17])
        assert str(checkpoint.weight_format) == "NVFP4"

    def test_exchanged_scales_of_gate_and_up_are_noticed(self, tmp_path: Path) -> None:
        tensors = nvfp4_tensors()
        swapped = tensors | {f"{GATE_UP}_weight_scale_2": tensors[f"{GATE_UP}_weight_scale_2"][:, ::-1].copy()}
        weight = open_checkpoint(write(tmp_path / "toy", swapped)).weight(GATE_UP)
        assert not np.allclose(weight.float32(), by_hand(tensors, GATE_UP))

    def test_codes_stay_in_the_file_until_they_are_asked_for(self, tmp_path: Path) -> None:
        weight = open_checkpoint(write(tmp_path / "toy", nvfp4_tensors())).weight(GATE_UP)
        assert isinstance(weight, Nvfp4)
        for array in (weight.codes, weight.scales):
            assert not array.flags.owndata
            assert not array.flags.writeable

    def test_excluded_layers_and_everything_else_are_floats(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(write(tmp_path / "toy", nvfp4_tensors()))
        assert checkpoint.quantization is None  # no integers: the native runner takes it as floats
        for name in checkpoint.names():
            if name not in (GATE_UP, DOWN):
                assert isinstance(checkpoint.weight(name), Plain)

    @pytest.mark.parametrize("shape", [None, (), (1,), (4,), (4, 1), (4, 2)])
    def test_input_scales_are_not_needed(self, tmp_path: Path, shape: tuple[int, ...] | None) -> None:
        scale = None if shape is None else np.ones(shape, np.float32)
        tensors = nvfp4_tensors() | {f"{GATE_UP}_input_scale": scale}
        assert isinstance(open_checkpoint(write(tmp_path / "toy", tensors)).weight(GATE_UP), Nvfp4)

    def test_the_declaration_may_be_in_config_json_or_in_both(self, tmp_path: Path) -> None:
        for modelopt in (None, MODELOPT):
            folder = write(tmp_path / str(modelopt is None), nvfp4_tensors(), modelopt, quantization_config=IN_CONFIG)
            assert isinstance(open_checkpoint(folder).weight(DOWN), Nvfp4)


class TestHostileTensors:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({f"{GATE_UP}_weight_scale": None}, r"Missing: .*gate_up_proj_weight_scale\."),
            ({f"{GATE_UP}_weight_scale_2": None}, r"Missing: .*gate_up_proj_weight_scale_2\."),
            (
                {f"{GATE_UP}_weight_scale_2": np.ones(4, np.float32)},
                r"gate_up_proj_weight_scale_2 is F32 \[4\] in model\.safetensors, expected F32 \[4, 2\]",
            ),
            ({f"{DOWN}_weight_scale_2": np.ones((4, 2), np.float32)}, r"down_proj_weight_scale_2 is F32 \[4, 2\]"),
            ({f"{DOWN}_weight_scale_2": np.ones(4, np.float16)}, r"down_proj_weight_scale_2 is F16 \[4\]"),
            ({f"{DOWN}_weight_scale": np.ones((4, 32, 3), np.uint8)}, "down_proj_weight_scale is U8"),
            (
                {f"{DOWN}_weight_scale": torch.ones(4, 32, 2).to(torch.float8_e4m3fn)},
                r"weight_scale is F8_E4M3 \[4, 32, 2",
            ),
            ({DOWN: np.zeros((4, 32, 48), np.uint8)}, r"down_proj is U8 \[4, 32, 48\] .* expected U8 \[4, 32, 24\]"),
            ({DOWN: np.zeros((4, 32, 24), np.int8)}, r"down_proj is I8 .* expected F32 or F16 or BF16"),
            ({DOWN: np.zeros(0, np.uint8)}, r"down_proj is U8 \[0\]"),
            ({f"{DOWN}_input_scale": np.ones((4, 3), np.float32)}, r"down_proj_input_scale is F32 \[4, 3\]"),
            ({f"{DOWN}_input_scale": np.ones(4, np.int32)}, "down_proj_input_scale is I32"),
            ({f"{DOWN}_scale": np.ones(4, np.float32)}, "Unexpected: .*down_proj_scale"),
            ({"lm_head.weight": np.zeros((320, 32), np.uint8)}, r"lm_head\.weight is U8"),
        ],
    )
    def test_that_do_not_fit_are_named(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        write(tmp_path / "toy", nvfp4_tensors() | changes)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / "toy")

    @pytest.mark.parametrize("name", [f"{DOWN}_weight_scale", f"{DOWN}_weight_scale_2", f"{GATE_UP}_weight_scale_2"])
    def test_with_a_scale_that_is_nan_are_named_with_their_file(self, tmp_path: Path, name: str) -> None:
        tensors = nvfp4_tensors()
        tensors[name][-1, ...] = float("nan")
        checkpoint = open_checkpoint(write(tmp_path / "toy", tensors))
        with pytest.raises(CheckpointError, match=rf"{name.rpartition('.')[2]} in model\.safetensors holds NaN or inf"):
            checkpoint.weight(name.rpartition("_weight")[0])

    def test_of_a_layer_that_is_excluded_are_a_contradiction(self, tmp_path: Path) -> None:
        for excluded in ("model.language_model.layers.1*", "model.language_model.layers.1", "*.experts", GATE_UP):
            quantization = {**MODELOPT["quantization"], "exclude_modules": [excluded]}
            write(tmp_path / "toy", nvfp4_tensors(), {"quantization": quantization})
            with pytest.raises(
                CheckpointError, match=r"gate_up_proj is stored quantised, but .*exclude_modules keeps it"
            ):
                open_checkpoint(tmp_path / "toy")

    def test_whose_inputs_are_not_whole_groups_are_refused(self, tmp_path: Path) -> None:
        config = toy_config(moe_intermediate_size=40)
        tensors = random_tensors(config) | {DOWN: np.zeros((4, 32, 20), np.uint8)}
        write_stored(tmp_path / "toy", config, tensors, quantization_config=IN_CONFIG)
        with pytest.raises(CheckpointError, match="down_proj has 40 inputs, not a multiple of 16, the group of NVFP4"):
            open_checkpoint(tmp_path / "toy")

    def test_of_llama4_which_lie_the_other_way_round_are_refused(self, tmp_path: Path) -> None:
        config = preset("toy-llama4")
        name = "language_model.model.layers.1.feed_forward.experts.down_proj"
        experts, width, out = random_tensors(config)[name].shape
        tensors = random_tensors(config) | {name: np.zeros((experts, width // 2, out), np.uint8)}
        write_stored(tmp_path / "toy", config, tensors, quantization_config=IN_CONFIG)
        with pytest.raises(CheckpointError, match=r"experts.down_proj is U8"):
            open_checkpoint(tmp_path / "toy")


class TestHostileDeclarations:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"quant_algo": "FP8"}, "hf_quant_config.json: quantization.quant_algo is 'FP8'; only 'NVFP4'"),
            ({"quant_algo": None}, "quant_algo is None"),
            ({"group_size": 32}, "hf_quant_config.json: quantization.group_size is 32; that of NVFP4 is 16"),
            ({"exclude_modules": "lm_head"}, "quantization.exclude_modules must be a list of module names"),
            ({"exclude_modules": [None]}, "quantization.exclude_modules must be a list of module names"),
        ],
    )
    def test_are_refused_by_field(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        write(tmp_path / "toy", nvfp4_tensors(), {"quantization": {**MODELOPT["quantization"], **changes}})
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / "toy")

    @pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":1,"a":1}', b"{}", b"[1]"])
    def test_that_are_no_declaration_are_refused_by_file(self, tmp_path: Path, content: bytes) -> None:
        write(tmp_path / "toy", nvfp4_tensors(), content)
        with pytest.raises(CheckpointError, match=r"hf_quant_config\.json"):
            open_checkpoint(tmp_path / "toy")

    def test_that_contradict_each_other_are_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "toy", nvfp4_tensors(), quantization_config={"quant_method": "fbgemm_fp8"})
        with pytest.raises(CheckpointError, match="declare different formats"):
            open_checkpoint(tmp_path / "toy")
