"""The pack-quantized format: bits where compressed-tensors puts them, and configs that we can't honour refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musespark.errors import CheckpointError
from musespark.model.pack_quantized import Bits, Quantization, dequantize, pack, unpack


def int32(word: int) -> int:
    """An unsigned word as the signed one with the same bits."""
    return word - (1 << 32) if word >= 1 << 31 else word


@pytest.mark.parametrize(
    ("bits", "values", "words"),
    [
        # Stored as value + 8, the first in the lowest nibble: 0, 1, 2 … 7 and 8, 9 … 15.
        (4, range(-8, 0), [0x76543210]),
        (4, range(8), [int32(0xFEDCBA98)]),
        (4, [1], [0x9]),
        (4, [0] * 9, [int32(0x88888888), 0x8]),
        # Stored as value + 128, the first in the lowest byte.
        (8, [-128, -127, 0, 127], [int32(0xFF800100)]),
        (8, [1, 2, 3, 4, 5], [int32(0x84838281), 0x85]),
    ],
)
def test_words_are_those_computed_by_hand(bits: Bits, values: Any, words: list[int]) -> None:
    array = np.array([list(values)], np.int8)
    packed = pack(array, bits)
    assert packed.dtype == np.int32
    assert packed.tolist() == [words]
    assert unpack(packed, bits, array.shape[1]).tolist() == array.tolist()


@given(st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_unpacking_reverses_packing(bits: Bits, out: int, width: int, seed: int) -> None:
    low = -(1 << (bits - 1))
    values = np.random.default_rng(seed).integers(low, -low, (out, width), np.int8)
    packed = pack(values, bits)
    assert packed.shape == (out, Quantization(bits, 1).packed_width(width))
    unpacked = unpack(packed, bits, width)
    assert unpacked.flags.c_contiguous
    np.testing.assert_array_equal(unpacked, values)


def test_packed_values_agree_with_a_loop_over_shifts() -> None:
    """The definition, word by word, as compressed-tensors' `pack_to_int32` spells it out."""
    values = np.random.default_rng(0).integers(-8, 8, (3, 16), np.int8)
    expected = np.zeros((3, 2), np.uint32)
    for row in range(3):
        for i in range(16):
            expected[row, i // 8] |= np.uint32(values[row, i] + 8) << np.uint32(4 * (i % 8))
    np.testing.assert_array_equal(pack(values, 4).view(np.uint32), expected)


def test_each_group_has_its_scale() -> None:
    values = np.array([[1, 2, 3, 4], [-1, -2, -3, -4]], np.int8)
    scales = np.array([[1.0, 10.0], [0.5, 0.0]], np.float32)
    assert dequantize(values, scales).tolist() == [[1, 2, 30, 40], [-0.5, -1, 0, 0]]
    assert dequantize(values[None], scales[None]).shape == (1, 2, 4)  # stacked experts


def test_the_config_survives_being_written_and_read() -> None:
    for quantization in (Quantization(4, 32), Quantization(8, 64), Quantization(4, None), Quantization(8, None, False)):
        data = quantization.to_dict(["re:.*vision.*"])
        assert Quantization.from_dict(data) == quantization
        assert data["ignore"] == ["re:.*vision.*"]


@pytest.mark.parametrize(
    ("strategy", "group_size", "expected"), [("channel", None, None), ("channel", -1, None), ("group", -1, None)]
)
def test_a_scale_for_a_whole_row_is_spelled_in_three_ways(
    strategy: str, group_size: int | None, expected: int | None
) -> None:
    data = Quantization(4, 32).to_dict(())
    data["config_groups"]["group_0"]["weights"] |= {"strategy": strategy, "group_size": group_size}
    quantization = Quantization.from_dict(data)
    assert quantization.group_size is expected
    assert quantization.inputs_per_scale(48) == 48


@pytest.mark.parametrize(("dynamic", "fits"), [(True, True), (False, False), ("local", False), (None, False)])
def test_int8_activations_are_quantised_while_running_or_not_at_all(dynamic: Any, fits: bool) -> None:
    data = Quantization(8, None, is_packed=False).to_dict(())
    data["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "dynamic": dynamic}
    if fits:
        assert Quantization.from_dict(data) == Quantization(8, None, is_packed=False)
        return
    with pytest.raises(CheckpointError, match=r"group_0\.input_activations\.dynamic is"):
        Quantization.from_dict(data)


@pytest.mark.parametrize("bits", [4, 8])
def test_stacked_experts_are_unpacked_one_by_one(bits: Bits) -> None:
    values = np.random.default_rng(1).integers(-7, 8, (3, 4, 13), np.int8)
    packed = np.stack([pack(matrix, bits) for matrix in values])
    np.testing.assert_array_equal(unpack(packed, bits, 13), values)


WEIGHTS = "config_groups.group_0.weights"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("quant_method", "gptq", "quantization_config.quant_method is 'gptq'"),
        ("format", "nvfp4-pack-quantized", "format is 'nvfp4-pack-quantized'"),
        ("kv_cache_scheme", {"num_bits": 8}, "kv_cache_scheme is not supported"),
        ("sparsity_config", {"format": "sparse"}, "sparsity_config is not supported"),
        ("config_groups", None, "exactly one group"),
        ("config_groups", {}, "exactly one group"),
        ("config_groups", {"a": {}, "b": {}}, "exactly one group"),
        ("config_groups", {"a": None}, "config_groups.a must be an object"),
        ("config_groups", {"a": {}}, "config_groups.a.weights must be an object"),
        ("config_groups.group_0.input_activations", {"num_bits": 8}, "input_activations is not supported"),
        (f"{WEIGHTS}.type", "float", "weights.type is 'float'"),
        (f"{WEIGHTS}.symmetric", False, "weights.symmetric is False"),
        (f"{WEIGHTS}.symmetric", 1, "weights.symmetric is 1"),
        ("format", ["pack-quantized"], "format is .*; supported are 'pack-quantized' and 'int-quantized'"),
        ("format", "int-quantized", "num_bits is 4; in the format 'int-quantized' only 8"),
        ("config_groups.group_0.output_activations", {"num_bits": 8}, "output_activations is not supported"),
        (f"{WEIGHTS}.strategy", "tensor", "weights.strategy is 'tensor'; supported are 'group' and 'channel'"),
        (f"{WEIGHTS}.strategy", "channel", "weights.group_size is 32, but strategy 'channel' has no groups"),
        (f"{WEIGHTS}.group_size", -2, "weights.group_size is -2"),
        (f"{WEIGHTS}.group_size", -1.0, "weights.group_size is -1.0"),
        (f"{WEIGHTS}.dynamic", True, "weights.dynamic is True"),
        (f"{WEIGHTS}.actorder", "group", "weights.actorder is 'group'"),
        (f"{WEIGHTS}.num_bits", 3, "weights.num_bits is 3; supported are 4 and 8"),
        (f"{WEIGHTS}.num_bits", 4.0, "weights.num_bits is 4.0"),
        (f"{WEIGHTS}.group_size", 0, "weights.group_size is 0"),
        (f"{WEIGHTS}.group_size", None, "weights.group_size is None"),
        (f"{WEIGHTS}.group_size", True, "weights.group_size is True"),
        (f"{WEIGHTS}.group_size", 2**70, "weights.group_size is"),
    ],
)
def test_a_format_that_is_not_ours_is_refused_by_field(path: str, value: Any, message: str) -> None:
    data = copy.deepcopy(Quantization(4, 32).to_dict(()))
    *parents, name = path.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    place[name] = value
    with pytest.raises(CheckpointError, match=message):
        Quantization.from_dict(data)


@pytest.mark.parametrize("value", [3, "x", [], True])
def test_a_config_that_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(CheckpointError, match="quantization_config must be an object"):
        Quantization.from_dict(value)
