"""The integer formats of compressed-tensors: their entry in `config.json`, and how the integers lie in memory.

In `pack-quantized` a Linear weight X.weight (out, in) becomes three tensors:

    X.weight_packed  int32 (out, ceil(in · bits / 32))  32/bits values a word, the first in the lowest bits, each stored
                                                        as value + 2^(bits-1)
    X.weight_scale   BF16, F16 or F32 (out, in / group_size)
    X.weight_shape   int64 (2,), [out, in]

and means weight[o, i] = value[o, i] · scale[o, i // group_size]. With one scale for a whole row ("channel"),
X.weight_scale is (out, 1). `int-quantized` keeps int8 in X.weight (out, in) beside X.weight_scale. Stacked experts,
`experts.down_proj`, have the same tensors with a leading expert axis, `experts.down_proj_packed`. Source:
compressed-tensors, `pack_to_int32`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from musespark.errors import CheckpointError
from musespark.model.json_file import show

Bits = Literal[4, 8]


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the integers of a checkpoint are to be read: symmetric, one scale for every `group_size` inputs of a row.

    group_size None: one scale for all inputs of a row. is_packed: several values a word, else int8.
    """

    bits: Bits
    group_size: int | None
    is_packed: bool = True

    @classmethod
    def from_dict(cls, data: Any) -> Quantization:
        """Check `quantization_config`. Raises CheckpointError naming the field that we can't honour."""
        format_name, where, weights = weights_of(data, ("pack-quantized", "int-quantized"))
        expect_fields(weights, where, {"type": "int", "symmetric": True})
        for name in ("dynamic", "actorder"):
            if weights.get(name):
                raise CheckpointError(f"{where}.{name} is {show(weights[name])}; it is not supported")
        bits = weights.get("num_bits")
        if type(bits) is not int or bits not in get_args(Bits):
            raise CheckpointError(f"{where}.num_bits is {show(bits)}; supported are 4 and 8")
        if format_name == "int-quantized" and bits != 8:
            raise CheckpointError(
                f"{where}.num_bits is {show(bits)}; in the format 'int-quantized' only 8 is supported"
            )
        return cls(4 if bits == 4 else 8, _group_size(weights, where), format_name == "pack-quantized")

    def to_dict(self, ignore: Sequence[str]) -> dict[str, Any]:
        """The `quantization_config` of `config.json`; `ignore` names the Linear modules that stay as they are."""
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "channel" if self.group_size is None else "group",
            "group_size": self.group_size,
            "dynamic": False,
            "actorder": None,
            "observer": "minmax",
        }
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized" if self.is_packed else "int-quantized",
            "quantization_status": "compressed",
            "kv_cache_scheme": None,
            "config_groups": {"group_0": group},
            "ignore": list(ignore),
        }

    def inputs_per_scale(self, width: int) -> int:
        """Inputs that share a scale in a row of `width`; it need not divide `width`."""
        return width if self.group_size is None else self.group_size

    def packed_width(self, width: int) -> int:
        """int32 words for one row of `width` values."""
        return -(-width * self.bits // 32)


def weights_of(data: Any, formats: Sequence[str]) -> tuple[str, str, Mapping[str, Any]]:
    """What `quantization_config` says of the weights: (format, the name of the place for errors, its `weights`).

    Raises CheckpointError unless it is compressed-tensors in one of `formats`, the same for all weights. Activations
    may be quantised while the model runs, which asks nothing of the weights, but not by stored numbers.
    """
    expect_fields(data, "quantization_config", {"quant_method": "compressed-tensors"})
    format_name = data.get("format")
    if format_name not in formats:
        supported = " and ".join(map(repr, formats))
        raise CheckpointError(f"quantization_config.format is {show(format_name)}; supported are {supported}")
    for name in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if data.get(name):
            raise CheckpointError(f"quantization_config.{name} is not supported; only quantised weights are")
    groups = data.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise CheckpointError(
            "quantization_config.config_groups must hold exactly one group: one format for all weights"
        )
    ((name, group),) = groups.items()
    where = f"quantization_config.config_groups.{show(name)[1:-1]}"
    expect_fields(group, where, {})
    expect_fields(group.get("weights"), f"{where}.weights", {})
    if group.get("output_activations"):
        raise CheckpointError(f"{where}.output_activations is not supported; only weights and inputs are quantised")
    activations = group.get("input_activations")
    if activations and format_name == "pack-quantized":
        raise CheckpointError(f"{where}.input_activations is not supported; in this format only weights are quantised")
    if activations:
        expect_fields(activations, f"{where}.input_activations", {"dynamic": True})
    return format_name, f"{where}.weights", group["weights"]


def _group_size(weights: Mapping[str, Any], where: str) -> int | None:
    """Inputs that share a scale, None for a whole row: strategy "channel", or a group of -1."""
    strategy, group_size = weights.get("strategy"), weights.get("group_size")
    if strategy not in ("group", "channel"):
        raise CheckpointError(f"{where}.strategy is {show(strategy)}; supported are 'group' and 'channel'")
    whole_row = (type(group_size) is int and group_size == -1) or (strategy == "channel" and group_size is None)
    if whole_row:
        return None
    if strategy == "channel":
        raise CheckpointError(f"{where}.group_size is {show(group_size)}, but strategy 'channel' has no groups")
    if type(group_size) is not int or not 1 <= group_size <= 1 << 24:
        raise CheckpointError(
            f"{where}.group_size is {show(group_size)}; it must be a positive integer, or -1 for a whole row"
        )
    return group_size


def pack(values: np.ndarray, bits: Bits) -> np.ndarray:
    """Pack int8 (out, in) within the range of `bits` into int32 (out, ceil(in · bits / 32)), rows padded with zeros."""
    width = values.shape[1]
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    assert values.min(initial=0) >= low, "a value is below the range"
    assert values.max(initial=0) <= high, "a value is above the range"
    per_word = 32 // bits
    stored = (values.astype(np.int16) - low).astype(np.uint8)
    stored = np.pad(stored, ((0, 0), (0, -width % per_word)))
    if bits == 4:
        stored = np.bitwise_or(stored[:, 0::2], stored[:, 1::2] << 4, dtype=np.uint8)
    return np.ascontiguousarray(stored).view("<i4")  # little-endian words: the first value in the lowest bits


def unpack(packed: np.ndarray, bits: Bits, width: int) -> np.ndarray:
    """The reverse of `pack`: int8 (…, out, width), a new array; stacked experts are unpacked one at a time."""
    values = np.empty((*packed.shape[:-1], width), np.int8)
    for index in np.ndindex(packed.shape[:-2]):
        stored = np.ascontiguousarray(packed[index]).view(np.uint8)
        if bits == 8:
            np.bitwise_xor(stored[:, :width], 0x80, out=values[index].view(np.uint8))  # that subtracts 128
            continue
        values[index][:, 0::2] = (stored & 0x0F)[:, : -(-width // 2)]
        values[index][:, 1::2] = (stored >> 4)[:, : width // 2]
        values[index] -= 8
    return values


def dequantize(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 (…, out, in) of int8 values (…, out, in) and scales (…, out, in / group_size)."""
    *rows, num_groups = scales.shape
    grouped = values.astype(np.float32).reshape(*rows, num_groups, -1)
    grouped *= scales[..., None]
    return grouped.reshape(values.shape)


def expect_fields(data: Any, where: str, expected: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless `data` is an object with exactly these values, of these types, in these fields."""
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{where} must be an object, not {show(data)}")
    for name, value in expected.items():
        if data.get(name) != value or type(data.get(name)) is not type(value):
            raise CheckpointError(f"{where}.{name} is {show(data.get(name))}; only {value!r} is supported")
