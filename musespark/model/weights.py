"""A logical weight in the form in which a checkpoint stores it: floats, integers, FP8 or NVFP4.

Each form gives its values in float32, and itself without the rest: one expert, or some rows (outputs). Those are views,
so that a reader can go through a large tensor piece by piece. Numbers of eight and four bits are looked up in tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from musespark.model.pack_quantized import Bits, dequantize
from musespark.model.squares import contiguous
from musespark.model.tensor_file import RawTensor

# Values converted at once: indexing turns each into an 8-byte index first, which must stay small beside the tensor.
BLOCK = 1 << 20


def _e4m3_values() -> np.ndarray:
    """float32 of the 256 codes of E4M3 ("fn": no infinity, all ones is NaN): 1.mmm · 2^(e - 7), 0.mmm · 2^-6."""
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    normal = np.ldexp(8.0 + mantissa, exponent - 10)
    positive = np.where(exponent == 0, np.ldexp(mantissa, -9), normal)
    positive[127] = np.nan
    return np.concatenate([positive, -positive]).astype(np.float32)


E4M3 = _e4m3_values()
_E2M1_POSITIVE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([_E2M1_POSITIVE, -_E2M1_POSITIVE])
# The two values of a byte, the lower four bits first.
E2M1_PAIRS = np.stack([np.tile(E2M1, 16), np.repeat(E2M1, 16)], axis=1)  # (256, 2)


class _Weight(ABC):
    """What all forms have in common: arrays whose last two axes are outputs and inputs, (…, out, anything)."""

    __slots__ = ()

    @abstractmethod
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that make up the weight, all with the same leading axes."""

    @abstractmethod
    def with_arrays(self, *arrays: np.ndarray) -> Self:
        """The same form around other arrays."""

    @abstractmethod
    def float32(self) -> np.ndarray:
        """The values, (…, out, in); a new array unless the weight is stored in float32."""

    def expert(self, index: int) -> Self:
        """One matrix of stacked experts, a view."""
        assert self.arrays()[0].ndim == 3, "only stacked experts have an expert axis"
        return self.with_arrays(*(array[index] for array in self.arrays()))

    def rows(self, start: int, stop: int) -> Self:
        """Outputs [start, stop) of a matrix, or of every expert, a view."""
        return self.with_arrays(*(array[..., start:stop, :] for array in self.arrays()))


@dataclass(frozen=True, slots=True, eq=False)
class Plain(_Weight):
    """A weight stored in a float dtype."""

    raw: RawTensor

    def arrays(self) -> tuple[np.ndarray, ...]:
        return (self.raw.data,)

    def with_arrays(self, *arrays: np.ndarray) -> Plain:
        (data,) = arrays
        return Plain(RawTensor(self.raw.dtype, data.shape, data))

    def float32(self) -> np.ndarray:
        return self.raw.float32()


@dataclass(frozen=True, slots=True, eq=False)
class Quantized(_Weight):
    """A weight stored in integers: weight[…, o, i] = packed[…, o, i] · scales[…, o, i // group_size].

    packed int8 (out, in), or (E, out, in) for experts, one value a byte whatever `bits` is, from -2^(bits-1);
    scales float32 (…, out, in / group_size); with one scale a row, group_size is the number of inputs.
    """

    bits: Bits
    group_size: int
    packed: np.ndarray
    scales: np.ndarray

    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.packed, self.scales

    def with_arrays(self, *arrays: np.ndarray) -> Quantized:
        packed, scales = arrays
        return replace(self, packed=packed, scales=scales)

    def float32(self) -> np.ndarray:
        return dequantize(self.packed, self.scales)


# Without slots, because `raw` is kept.
@dataclass(frozen=True, eq=False)
class Fp8(_Weight):
    """A weight in 8-bit floats, one scale an output: weight[…, o, i] = e4m3(codes[…, o, i]) · scales[…, o, 0].

    codes uint8 (…, out, in), of a fused tensor a view into the file; scales float32 (…, out, 1).
    """

    codes: np.ndarray
    scales: np.ndarray

    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.codes, self.scales

    def with_arrays(self, *arrays: np.ndarray) -> Fp8:
        return Fp8(*arrays)

    def float32(self) -> np.ndarray:
        result = np.empty(self.codes.shape, np.float32)
        with np.errstate(over="ignore"):  # a huge scale gives infinity, as it does in every other reader
            for block in _blocks(result.shape):
                np.multiply(E4M3[contiguous(self.codes[block])], self.scales[block], out=result[block])
        return result

    @cached_property
    def raw(self) -> RawTensor:
        """The values as a stored tensor, for readers that know no FP8; kept as long as this object."""
        return RawTensor("F32", self.codes.shape, self.float32())


@dataclass(frozen=True, eq=False)
class Nvfp4(_Weight):
    """A weight in 4-bit floats: weight[…, o, i] = e2m1(code i of row o) · e4m3(scales[…, o, i // 16]) · tops[…, o, 0].

    codes uint8 (…, out, in / 2), two a byte, the first in the lower bits; scales uint8 (…, out, in / 16), codes of
    E4M3; both views into the file. tops float32 (…, out, 1): the tensor's own scale, called `scale_2` there. The
    product of the first two is exact in float32, so that a value is rounded once.
    """

    codes: np.ndarray
    scales: np.ndarray
    tops: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-1], 2 * self.codes.shape[-1])

    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.codes, self.scales, self.tops

    def with_arrays(self, *arrays: np.ndarray) -> Nvfp4:
        return Nvfp4(*arrays)

    def float32(self) -> np.ndarray:
        result = np.empty(self.shape, np.float32)
        with np.errstate(over="ignore"):
            for block in _blocks(self.shape):
                scales = E4M3[self.scales[block]][..., None]  # (rows, in / 16, 1)
                values = E2M1_PAIRS[contiguous(self.codes[block])].reshape(*scales.shape[:-1], 16) * scales
                np.multiply(values.reshape(len(values), -1), self.tops[block], out=result[block])
        return result

    @cached_property
    def raw(self) -> RawTensor:
        """See `Fp8.raw`."""
        return RawTensor("F32", self.shape, self.float32())


Weight = Plain | Quantized | Fp8 | Nvfp4


def join_experts(matrices: Iterable[Weight], num_matrices: int, num_experts: int) -> Weight:
    """One weight (E, out, in) of matrices in stacking order, as many for every expert; read one at a time."""
    joined: list[np.ndarray] = []
    matrix: Weight | None = None
    for index, matrix in enumerate(matrices):
        joined = joined or [np.empty((num_matrices, *array.shape), array.dtype) for array in matrix.arrays()]
        for whole, array in zip(joined, matrix.arrays(), strict=True):
            whole[index] = array
    assert matrix is not None, "there is no model without experts"
    return matrix.with_arrays(*(whole.reshape(num_experts, -1, whole.shape[-1]) for whole in joined))


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[int | slice, ...]]:
    """Indices of two-dimensional blocks of at most BLOCK values, or one row, that cover an array (…, out, in)."""
    *stack, out, width = shape
    num_rows = max(1, BLOCK // max(1, width))
    for index in np.ndindex(*stack):
        for start in range(0, out, num_rows):
            yield (*index, slice(start, start + num_rows))
