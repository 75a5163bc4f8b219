"""The `pack-quantized` format of compressed-tensors: its entry in `config.json`, and how its integers lie in memory.

A Linear weight X.weight (out, in) becomes three tensors:

    X.weight_packed  int32 (out, ceil(in · bits / 32))  32/bits values a word, the first in the lowest bits, each stored
                                                        as value + 2^(bits-1)
    X.weight_scale   BF16, F16 or F32 (out, in / group_size)
    X.weight_shape   int64 (2,), [out, in]

and means weight[o, i] = value[o, i] · scale[o, i // group_size]. Source: compressed-tensors, `pack_to_int32`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from musespark.errors import CheckpointError

Bits = Literal[4, 8]


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the packed tensors of a checkpoint are to be read: symmetric integers with one scale per group of inputs."""

    bits: Bits
    group_size: int

    @classmethod
    def from_dict(cls, data: Any) -> Quantization:
        """Check `quantization_config`. Raises CheckpointError naming the field that we can't honour."""
        _expect(data, "quantization_config", {"quant_method": "compressed-tensors", "format": "pack-quantized"})
        for name in ("kv_cache_scheme", "sparsity_config", "transform_config"):
            if data.get(name):
                raise CheckpointError(f"quantization_config.{name} is not supported; only packed weights are")
        groups = data.get("config_groups")
        if not isinstance(groups, Mapping) or len(groups) != 1:
            raise CheckpointError(
                "quantization_config.config_groups must hold exactly one group: one format for all weights"
            )
        (where, group), *_ = ((f"quantization_config.config_groups.{name}", group) for name, group in groups.items())
        _expect(group, where, {})
        weights = group.get("weights")
        _expect(weights, f"{where}.weights", {"type": "int", "symmetric": True, "strategy": "group"})
        for name in ("input_activations", "output_activations"):
            if group.get(name):
                raise CheckpointError(f"{where}.{name} is not supported; only weights are quantised in this format")
        for name in ("dynamic", "actorder"):
            if weights.get(name):
                raise CheckpointError(f"{where}.weights.{name} is {weights[name]!r}; it is not supported")
        bits, group_size = weights.get("num_bits"), weights.get("group_size")
        if type(bits) is not int or bits not in get_args(Bits):
            raise CheckpointError(f"{where}.weights.num_bits is {bits!r}; supported are 4 and 8")
        if type(group_size) is not int or not 1 <= group_size <= 1 << 24:
            raise CheckpointError(f"{where}.weights.group_size is {group_size!r}; it must be a positive integer")
        return cls(4 if bits == 4 else 8, group_size)

    def to_dict(self, ignore: Sequence[str]) -> dict[str, Any]:
        """The `quantization_config` of `config.json`; `ignore` names the Linear modules that stay as they are."""
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": self.group_size,
            "dynamic": False,
            "actorder": None,
            "observer": "minmax",
        }
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "kv_cache_scheme": None,
            "config_groups": {"group_0": group},
            "ignore": list(ignore),
        }

    def packed_width(self, width: int) -> int:
        """int32 words for one row of `width` values."""
        return -(-width * self.bits // 32)


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
    """The reverse of `pack`: int8 (out, width), a new array."""
    stored = np.ascontiguousarray(packed).view(np.uint8)
    if bits == 8:
        return (stored[:, :width] ^ 0x80).view(np.int8)  # flipping the top bit subtracts 128
    values = np.empty((len(stored), stored.shape[1] * 2), np.int8)
    values[:, 0::2] = (stored & 0x0F).view(np.int8)
    values[:, 1::2] = (stored >> 4).view(np.int8)
    values -= 8
    return np.ascontiguousarray(values[:, :width])


def dequantize(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 (…, out, in) of int8 values (…, out, in) and scales (…, out, in / group_size)."""
    *rows, num_groups = scales.shape
    grouped = values.astype(np.float32).reshape(*rows, num_groups, -1)
    return (grouped * scales[..., None]).reshape(values.shape)


def _expect(data: Any, where: str, expected: Mapping[str, Any]) -> None:
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{where} must be an object, not {data!r}")
    for name, value in expected.items():
        if data.get(name) != value or type(data.get(name)) is not type(value):
            raise CheckpointError(f"{where}.{name} is {data.get(name)!r}; only {value!r} is supported")
