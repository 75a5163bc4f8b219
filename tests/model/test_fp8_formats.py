"""FP8 weights: compressed-tensors with a scale an output, and Llama 4's fused experts as fbgemm leaves them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musespark.errors import CheckpointError
from musespark.model.checkpoint import Plain, open_checkpoint
from musespark.model.presets import preset
from musespark.model.quantize import quantize_checkpoint
from musespark.model.weights import Fp8
from tests.model.files import TOY, random_tensors, write_stored

LLAMA = preset("toy-llama4")
EXPERTS = "language_model.model.layers.1.feed_forward.experts."
HIDDEN, WIDE = LLAMA.text.hidden_size, LLAMA.text.moe_intermediate_size
NUM_EXPERTS = LLAMA.text.num_local_experts
Q_PROJ = "model.language_model.layers.0.self_attn.q_proj.weight"

CHANNEL: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head", "re:.*router", "re:.*vision.*"],
}
FBGEMM: dict[str, Any] = {
    "quant_method": "fbgemm_fp8",
    "activation_scale_ub": 1200.0,
    "modules_to_not_convert": ["language_model.lm_head", "language_model.model.layers.0"],
}


def fp8(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 50).to(torch.float8_e4m3fn)


def scales(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.01


def by_hand(codes: torch.Tensor, scale_of_row: torch.Tensor) -> np.ndarray:
    """(out, in) and (out,): torch's values, one product at a time, rounded to float32 once."""
    values = codes.float().tolist()
    rows = [
        [np.float32(value * scale) for value in row] for row, scale in zip(values, scale_of_row.tolist(), strict=True)
    ]
    return np.array(rows, np.float32)


def with_changes(tensors: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`tensors` with `changes`, of which None takes a tensor away."""
    return {name: value for name, value in (tensors | changes).items() if value is not None}


class TestCompressedTensors:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_matrix_is_its_values_times_the_scale_of_the_row(self, tmp_path: Path, dtype: torch.dtype) -> None:
        codes, scale = fp8(64, 64), scales(64, 1).to(dtype)
        tensors = random_tensors() | {Q_PROJ: codes, f"{Q_PROJ}_scale": scale}
        checkpoint = open_checkpoint(write_stored(tmp_path / "toy", TOY, tensors, quantization_config=CHANNEL))
        weight = checkpoint.weight(Q_PROJ)
        assert isinstance(weight, Fp8)
        np.testing.assert_array_equal(weight.float32(), by_hand(codes, scale[:, 0].float()))
        assert isinstance(checkpoint.weight("lm_head.weight"), Plain)
        assert checkpoint.quantization is None  # no integers: the native runner takes it as floats
        assert str(checkpoint.weight_format) == "FP8"

    def test_experts_one_by_one_are_presented_stacked(self, tmp_path: Path) -> None:
        tensors: dict[str, Any] = random_tensors(LLAMA)
        expected: dict[tuple[int, str], np.ndarray] = {}
        for name in [name for name in tensors if ".experts." in name]:
            del tensors[name]
            prefix, _, fused = name.rpartition(".")
            for e in range(NUM_EXPERTS):
                for part in ("down_proj",) if fused == "down_proj" else ("gate_proj", "up_proj"):
                    shape = (HIDDEN, WIDE) if part == "down_proj" else (WIDE, HIDDEN)
                    codes, scale = fp8(*shape, seed=e), scales(shape[0], 1)
                    tensors |= {f"{prefix}.{e}.{part}.weight": codes, f"{prefix}.{e}.{part}.weight_scale": scale}
                    expected[e, part] = by_hand(codes, scale[:, 0])
        checkpoint = open_checkpoint(write_stored(tmp_path / "toy", LLAMA, tensors, quantization_config=CHANNEL))
        gate_up, down = checkpoint.weight(f"{EXPERTS}gate_up_proj"), checkpoint.weight(f"{EXPERTS}down_proj")
        assert isinstance(gate_up, Fp8)
        for e in range(NUM_EXPERTS):
            both = np.concatenate([expected[e, "gate_proj"], expected[e, "up_proj"]])
            np.testing.assert_array_equal(gate_up.expert(e).float32(), both)
            np.testing.assert_array_equal(down.expert(e).float32(), expected[e, "down_proj"])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({f"{Q_PROJ}_scale": None}, r"Missing: .*q_proj\.weight_scale\."),
            (
                {f"{Q_PROJ}_scale": scales(64)},
                r"q_proj\.weight_scale is F32 \[64\] in model\.safetensors, .* \[64, 1\]",
            ),
            ({f"{Q_PROJ}_scale": scales(1)}, r"q_proj\.weight_scale is F32 \[1\]"),
            ({f"{Q_PROJ}_scale": fp8(64, 1)}, r"q_proj\.weight_scale is F8_E4M3"),
            ({Q_PROJ: fp8(64, 63)}, r"q_proj\.weight is F8_E4M3 \[64, 63\] .*expected F8_E4M3 \[64, 64\]"),
            ({Q_PROJ: torch.zeros(64, 64, dtype=torch.int8)}, r"q_proj\.weight is I8"),
            ({f"{Q_PROJ.removesuffix('weight')}input_scale": scales(1)}, r"Unexpected: .*q_proj\.input_scale"),
            ({"lm_head.weight": fp8(320, 64), "lm_head.weight_scale": scales(320, 1)}, "lm_head.weight is stored quan"),
            ({"model.language_model.embed_tokens.weight": fp8(320, 64)}, r"embed_tokens\.weight is F8_E4M3"),
        ],
    )
    def test_tensors_that_do_not_fit_are_named(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        tensors = with_changes(random_tensors() | {Q_PROJ: fp8(64, 64), f"{Q_PROJ}_scale": scales(64, 1)}, changes)
        write_stored(tmp_path / "toy", TOY, tensors, quantization_config=CHANNEL)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / "toy")

    def test_without_the_declaration_its_dtype_is_refused(self, tmp_path: Path) -> None:
        write_stored(tmp_path / "toy", TOY, random_tensors() | {Q_PROJ: fp8(64, 64)})
        with pytest.raises(CheckpointError, match=r"q_proj\.weight is F8_E4M3 .* expected F32 or F16 or BF16"):
            open_checkpoint(tmp_path / "toy")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_scale_that_is_not_finite_is_named_with_its_file(self, tmp_path: Path, value: float) -> None:
        scale = scales(64, 1)
        scale[9] = value
        tensors = random_tensors() | {Q_PROJ: fp8(64, 64), f"{Q_PROJ}_scale": scale}
        write_stored(tmp_path / "toy", TOY, tensors, quantization_config=CHANNEL)
        with pytest.raises(CheckpointError, match=r"q_proj\.weight_scale in model\.safetensors holds NaN or infinity"):
            open_checkpoint(tmp_path / "toy").weight(Q_PROJ)

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("weights.type", "int", "weights.type is 'int'"),
            ("weights.num_bits", 4, "weights.num_bits is 4"),
            ("weights.symmetric", False, "weights.symmetric is False"),
            ("weights.strategy", "tensor", "weights.strategy is 'tensor'"),
            ("weights.strategy", "block", "weights.strategy is 'block'"),
            ("weights.dynamic", True, "weights.dynamic is True"),
            ("input_activations.dynamic", False, "input_activations.dynamic is False"),
            ("input_activations", "token", "input_activations must be an object"),
            ("weights", None, "weights must be an object"),
        ],
    )
    def test_another_variant_is_refused_by_field(self, tmp_path: Path, path: str, value: Any, message: str) -> None:
        config = copy.deepcopy(CHANNEL)
        *parents, name = path.split(".")
        place = config["config_groups"]["group_0"]
        for parent in parents:
            place = place[parent]
        place[name] = value
        write_stored(tmp_path / "toy", TOY, random_tensors(), quantization_config=config)
        with pytest.raises(CheckpointError, match=f"group_0.{message}"):
            open_checkpoint(tmp_path / "toy")

    def test_it_is_not_quantised_a_second_time(self, tmp_path: Path) -> None:
        write_stored(tmp_path / "toy", TOY, random_tensors(), quantization_config=CHANNEL)
        with pytest.raises(CheckpointError, match="is quantised already, to FP8; start from the original"):
            quantize_checkpoint(tmp_path / "toy", tmp_path / "small")


def fbgemm_tensors() -> dict[str, Any]:
    """Fused experts (E, in, out) of layer 1: scales (E, 1, out) for gate_up_proj, (E, out, 1) for down_proj."""
    return random_tensors(LLAMA) | {
        f"{EXPERTS}gate_up_proj": fp8(NUM_EXPERTS, HIDDEN, 2 * WIDE),
        f"{EXPERTS}gate_up_proj_scale": scales(NUM_EXPERTS, 1, 2 * WIDE),
        f"{EXPERTS}down_proj": fp8(NUM_EXPERTS, WIDE, HIDDEN),
        f"{EXPERTS}down_proj_scale": scales(NUM_EXPERTS, HIDDEN, 1),
    }


class TestFbgemm:
    def test_fused_experts_have_a_scale_for_each_output(self, tmp_path: Path) -> None:
        tensors = fbgemm_tensors()
        checkpoint = open_checkpoint(write_stored(tmp_path / "toy", LLAMA, tensors, quantization_config=FBGEMM))
        for name in (f"{EXPERTS}gate_up_proj", f"{EXPERTS}down_proj"):
            weight, codes, scale = checkpoint.weight(name), tensors[name], tensors[f"{name}_scale"]
            assert isinstance(weight, Fp8)
            for e in range(NUM_EXPERTS):
                expected = by_hand(codes[e].T, scale[e].flatten())
                np.testing.assert_array_equal(weight.expert(e).float32(), expected)
            np.testing.assert_array_equal(weight.rows(3, 9).float32(), weight.float32()[:, 3:9])
            assert weight.codes.base is not None  # a view of the file: nothing is copied until it is asked for
        assert isinstance(checkpoint.weight("language_model.lm_head.weight"), Plain)

    def test_linear_layers_have_a_scale_for_each_row(self, tmp_path: Path) -> None:
        name = f"{EXPERTS.removesuffix('experts.')}shared_expert.down_proj.weight"
        codes, scale = fp8(HIDDEN, WIDE), scales(HIDDEN, 1)
        tensors = fbgemm_tensors() | {name: codes, f"{name}_scale": scale}
        checkpoint = open_checkpoint(write_stored(tmp_path / "toy", LLAMA, tensors, quantization_config=FBGEMM))
        np.testing.assert_array_equal(checkpoint.weight(name).float32(), by_hand(codes, scale[:, 0]))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({f"{EXPERTS}gate_up_proj_scale": None}, "Missing: .*gate_up_proj_scale"),
            (
                {f"{EXPERTS}gate_up_proj_scale": scales(NUM_EXPERTS, 2 * WIDE, 1)},
                "gate_up_proj_scale is F32 .* in model.safetensors, expected",
            ),
            ({f"{EXPERTS}down_proj_scale": scales(NUM_EXPERTS, 1, HIDDEN)}, "down_proj_scale is F32"),
            ({f"{EXPERTS}down_proj": fp8(NUM_EXPERTS, HIDDEN, WIDE)}, "down_proj is F8_E4M3"),
            ({f"{EXPERTS}down_proj_weight_scale": scales(1)}, "Unexpected: .*down_proj_weight_scale"),
            (
                {"language_model.lm_head.weight": fp8(*random_tensors(LLAMA)["language_model.lm_head.weight"].shape)},
                "lm_head.weight is stored quantised, but quantization_config.modules_to_not_convert keeps it",
            ),
        ],
    )
    def test_tensors_that_do_not_fit_are_named(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        tensors = with_changes(fbgemm_tensors(), changes)
        write_stored(tmp_path / "toy", LLAMA, tensors, quantization_config=FBGEMM)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / "toy")

    def test_fused_experts_of_this_orientation_are_refused_in_compressed_tensors(self, tmp_path: Path) -> None:
        write_stored(tmp_path / "toy", LLAMA, fbgemm_tensors(), quantization_config=CHANNEL)
        with pytest.raises(CheckpointError, match=r"gate_up_proj is F8_E4M3 .* expected F32 or F16 or BF16"):
            open_checkpoint(tmp_path / "toy")

    def test_a_scale_that_is_not_finite_is_named_with_its_file(self, tmp_path: Path) -> None:
        tensors = fbgemm_tensors()
        tensors[f"{EXPERTS}down_proj_scale"][0, 5, 0] = np.nan
        write_stored(tmp_path / "toy", LLAMA, tensors, quantization_config=FBGEMM)
        with pytest.raises(CheckpointError, match=r"down_proj_scale in model\.safetensors holds NaN"):
            open_checkpoint(tmp_path / "toy").weight(f"{EXPERTS}down_proj")
