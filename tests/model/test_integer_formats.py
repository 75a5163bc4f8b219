"""Integers as compressed-tensors stores them: a scale for a row or a group, int8 or packed, experts stacked or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from musespark.errors import CheckpointError
from musespark.model.checkpoint import Plain, Quantized, open_checkpoint
from musespark.model.pack_quantized import Bits, Quantization, pack
from musespark.model.tensors import expert_parts
from tests.model.files import TOY, random_tensors, write_stored

HEAD = "lm_head.weight"
Q_PROJ = "model.language_model.layers.0.self_attn.q_proj.weight"
DOWN = "model.language_model.layers.1.mlp.experts.down_proj"  # (E, H, I) = (4, 32, 48)
GATE_UP = "model.language_model.layers.1.mlp.experts.gate_up_proj"  # (E, 2I, H) = (4, 96, 32)

CHANNEL_8 = Quantization(8, None, is_packed=False)


def integers(shape: tuple[int, ...], bits: Bits = 8, seed: int = 0) -> np.ndarray:
    low = -(1 << (bits - 1))
    return np.random.default_rng(seed).integers(low, -low, shape, np.int8)


def bf16_scales(*shape: int) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.01).bfloat16()


def by_hand(values: np.ndarray, scales: torch.Tensor, group_size: int) -> np.ndarray:
    """value · scale, one matrix element at a time."""
    result = np.empty(values.shape, np.float32)
    for index in np.ndindex(values.shape):
        *row, i = index
        result[index] = float(values[index]) * scales[*row, i // group_size].item()
    return result


def stored(
    name: str, values: np.ndarray, scales: torch.Tensor, how: Quantization
) -> dict[str, np.ndarray | torch.Tensor]:
    """The tensors of one quantised matrix, or of stacked ones."""
    if not how.is_packed:
        return {name: values, f"{name}_scale": scales}
    matrices = [pack(matrix, how.bits) for matrix in values.reshape(-1, *values.shape[-2:])]
    packed = np.stack(matrices).reshape(*values.shape[:-1], -1)
    return {f"{name}_packed": packed, f"{name}_scale": scales, f"{name}_shape": np.array(values.shape, np.int64)}


def without(*names: str) -> dict[str, np.ndarray | torch.Tensor]:
    return {name: array for name, array in random_tensors().items() if name not in names}


@pytest.mark.parametrize(
    "how", [Quantization(8, None), Quantization(4, None), CHANNEL_8, Quantization(8, 16, is_packed=False)], ids=str
)
@pytest.mark.parametrize("name", [Q_PROJ, DOWN, GATE_UP])
def test_every_layout_gives_value_times_scale(tmp_path: Path, how: Quantization, name: str) -> None:
    values = integers(random_tensors()[name].shape, how.bits)
    group_size = how.group_size or values.shape[-1]
    scales = bf16_scales(*values.shape[:-1], values.shape[-1] // group_size)
    tensors = without(name) | stored(name, values, scales, how)
    checkpoint = open_checkpoint(write_stored(tmp_path / "toy", TOY, tensors, quantization_config=how.to_dict(())))
    weight = checkpoint.weight(name)
    assert isinstance(weight, Quantized)
    assert (weight.bits, weight.group_size) == (how.bits, group_size)
    np.testing.assert_array_equal(weight.packed, values)
    np.testing.assert_array_equal(weight.float32(), by_hand(values, scales, group_size))
    assert isinstance(checkpoint.weight("model.language_model.embed_tokens.weight"), Plain)


@pytest.mark.parametrize("how", [Quantization(4, None), CHANNEL_8], ids=str)
def test_experts_one_by_one_are_the_rows_of_the_stacked_ones(tmp_path: Path, how: Quantization) -> None:
    values = integers((4, 96, 32), how.bits)
    scales = bf16_scales(4, 96, 1)
    tensors = without(GATE_UP)
    for e in range(4):  # gate is the upper half of an expert
        for part, rows in (("gate_proj", slice(0, 48)), ("up_proj", slice(48, 96))):
            name = f"{GATE_UP.removesuffix('gate_up_proj')}{e}.{part}.weight"
            tensors |= stored(name, np.ascontiguousarray(values[e, rows]), scales[e, rows], how)
    checkpoint = open_checkpoint(write_stored(tmp_path / "toy", TOY, tensors, quantization_config=how.to_dict(())))
    weight = checkpoint.weight(GATE_UP)
    expected = by_hand(values, scales, 32)
    np.testing.assert_array_equal(weight.float32(), expected)
    np.testing.assert_array_equal(weight.expert(2).float32(), expected[2])
    np.testing.assert_array_equal(weight.rows(40, 50).float32(), expected[:, 40:50])
    np.testing.assert_array_equal(weight.expert(3).rows(7, 8).float32(), expected[3, 7:8])


def test_a_module_on_the_ignore_list_stays_a_float(tmp_path: Path) -> None:
    tensors = without(Q_PROJ) | stored(Q_PROJ, integers((64, 64)), bf16_scales(64, 1), CHANNEL_8)
    config = CHANNEL_8.to_dict(["lm_head", "re:.*\\.k_proj$", "re:.*vision.*"])
    checkpoint = open_checkpoint(write_stored(tmp_path / "toy", TOY, tensors, quantization_config=config))
    np.testing.assert_array_equal(checkpoint.weight(HEAD).float32(), random_tensors()[HEAD])
    assert isinstance(checkpoint.weight(Q_PROJ), Quantized)


@pytest.mark.parametrize("ignored", [Q_PROJ.removesuffix(".weight"), "re:.*\\.layers\\.0\\..*", "re:.*self_attn"])
def test_a_module_on_the_ignore_list_that_is_quantised_is_a_contradiction(tmp_path: Path, ignored: str) -> None:
    tensors = without(Q_PROJ) | stored(Q_PROJ, integers((64, 64)), bf16_scales(64, 1), CHANNEL_8)
    write_stored(tmp_path / "toy", TOY, tensors, quantization_config=CHANNEL_8.to_dict([ignored]))
    with pytest.raises(
        CheckpointError, match=r"layers\.0\.self_attn\.q_proj\.weight is stored quantised, but .*ignore"
    ):
        open_checkpoint(tmp_path / "toy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{DOWN}_scale": bf16_scales(4, 32)}, r"down_proj_scale is BF16 \[4, 32\] in model\.safetensors, expected"),
        ({f"{DOWN}_scale": bf16_scales(4, 1, 32)}, r"down_proj_scale is BF16 \[4, 1, 32\] .* \[4, 32, 1\]"),
        ({f"{DOWN}_scale": None}, r"Missing: .*down_proj_scale\."),
        ({DOWN: integers((4, 48, 32))}, r"down_proj is I8 \[4, 48, 32\] .* expected I8 \[4, 32, 48\]"),
        ({DOWN: integers((32, 48))}, r"down_proj is I8 \[32, 48\]"),
        ({DOWN: np.zeros((4, 32, 48), np.uint8)}, r"down_proj is U8"),
        ({DOWN: np.zeros((4, 32, 48), np.float16)}, r"Unexpected: .*down_proj_scale'"),
        ({f"{DOWN}_packed": np.zeros((4, 32, 12), np.int32)}, r"Unexpected: .*down_proj_packed'"),
        ({HEAD: np.zeros((320, 64), np.int8)}, r"Missing: lm_head\.weight_scale"),
        ({"model.vision_projection.weight": np.zeros((64, 32), np.int8)}, r"vision_projection\.weight is I8"),
    ],
)
def test_tensors_that_contradict_the_format_are_named(
    tmp_path: Path, change: dict[str, np.ndarray | torch.Tensor | None], message: str
) -> None:
    tensors = without(DOWN) | stored(DOWN, integers((4, 32, 48)), bf16_scales(4, 32, 1), CHANNEL_8) | change
    given = {name: value for name, value in tensors.items() if value is not None}
    write_stored(tmp_path / "toy", TOY, given, quantization_config=CHANNEL_8.to_dict(()))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "toy")


def test_stacked_experts_whose_shape_tensor_lies_are_refused(tmp_path: Path) -> None:
    how = Quantization(4, None)
    tensors = without(DOWN) | stored(DOWN, integers((4, 32, 48), 4), bf16_scales(4, 32, 1), how)
    for shape in ([4, 48, 32], [32, 48], [4, 32, 48, 1]):
        tensors[f"{DOWN}_shape"] = np.array(shape, np.int64)
        write_stored(tmp_path / "toy", TOY, tensors, quantization_config=how.to_dict(()))
        with pytest.raises(CheckpointError, match="down_proj_shape"):
            open_checkpoint(tmp_path / "toy")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_not_finite_is_refused_with_its_file(tmp_path: Path, value: float) -> None:
    scales = bf16_scales(4, 32, 1)
    scales[3, 31, 0] = value
    tensors = without(DOWN) | stored(DOWN, integers((4, 32, 48)), scales, CHANNEL_8)
    write_stored(tmp_path / "toy", TOY, tensors, quantization_config=CHANNEL_8.to_dict(()))
    with pytest.raises(CheckpointError, match=r"down_proj_scale in model\.safetensors holds NaN or infinity"):
        open_checkpoint(tmp_path / "toy").weight(DOWN)


def test_an_expert_that_lacks_its_scale_is_named(tmp_path: Path) -> None:
    tensors = without(DOWN)
    for part, shape in expert_parts(DOWN, (4, 32, 48)):
        tensors |= stored(part, integers((shape[0], shape[1])), bf16_scales(shape[0], 1), CHANNEL_8)
    del tensors[f"{DOWN.removesuffix('down_proj')}2.down_proj.weight_scale"]
    write_stored(tmp_path / "toy", TOY, tensors, quantization_config=CHANNEL_8.to_dict(()))
    with pytest.raises(CheckpointError, match=r"Missing: .*experts\.2\.down_proj\.weight_scale\."):
        open_checkpoint(tmp_path / "toy")
