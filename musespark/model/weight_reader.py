"""All weights of a checkpoint, one after the other, for a runner that makes its own copy of them.

Each comes in the form in which it is stored (four bits stay four bits), in memory of its own, which is all the memory
that reading takes, and is read in large pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from musespark.errors import CheckpointError
from musespark.model.checkpoint import Checkpoint
from musespark.model.squares import copy_by_squares
from musespark.model.tensor_file import DTYPES, FLOAT_DTYPES, RawTensor, TensorFile
from musespark.model.tensors import AUDIO_PREFIX, is_transposed
from musespark.model.weights import Fp8, Nvfp4

Kind = Literal["F32", "F16", "BF16", "I8", "I4"]
Progress = Callable[[int, int], None]  # bytes read, bytes of all


@dataclass(frozen=True, slots=True, eq=False)
class StoredWeight:
    """One logical weight. data (…, out, in), contiguous: floats, BF16 as its bits in uint16, or int8; of I4 it is uint8
    (…, out, 4 · ceil(in / 8)), the words of `pack_quantized` byte by byte.

    scales, of integers only: (…, out, in / group_size), float32, or the bits of bfloat16 in uint16 if stored so.
    """

    kind: Kind
    data: np.ndarray
    scales: np.ndarray | None = None
    group_size: int = 0


class WeightReader:
    """Reads the logical tensors of a checkpoint, best in the order of its names, which is about that of the files."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress | None = None) -> None:
        """progress is called for every few megabytes."""
        self._checkpoint = checkpoint
        self._progress = progress
        self._done = 0
        self._all = sum(
            entry.end - entry.start
            for name in checkpoint.stored_names()
            if not name.startswith(AUDIO_PREFIX)
            for entry in [checkpoint.file(name).entries[name]]
        )
        for file in self._files():
            file.reader.on_read = self._read_some

    def read(self, name: str) -> StoredWeight:
        """The logical tensor `name`. FP8 and NVFP4, which are used as floats, come as F32.

        Raises CheckpointError if a file can't be read or a scale is not finite.
        """
        parts = [part for part, _ in self._checkpoint.parts(name)]
        kind = self._checkpoint.kind(parts[0])
        num_experts = None if parts == [name] else self._checkpoint.shape(name)[0]
        if kind in ("packed", "I8"):
            return self._integers(name, parts, num_experts)
        if kind in FLOAT_DTYPES:
            data = self._transposed(name) if parts == [name] and is_transposed(name) else self._read(parts, num_experts)
            float_kind: Kind = "F16" if kind == "F16" else "BF16" if kind == "BF16" else "F32"
            return StoredWeight(float_kind, data.view(np.uint16) if kind == "F16" else data)
        weight = self._checkpoint.weight(name)
        assert isinstance(weight, Fp8 | Nvfp4), f"{name} is stored as {kind}"
        return StoredWeight("F32", weight.raw.data)

    def finish(self) -> None:
        """To be called when all is read. Raises CheckpointError if a file is damaged."""
        self._checkpoint.check_files()
        for file in self._files():
            file.reader.on_read = None
        if self._progress is not None:
            self._progress(self._all, self._all)

    def _integers(self, name: str, parts: list[str], num_experts: int | None) -> StoredWeight:
        quantization = self._checkpoint.quantization
        assert quantization is not None, "opening accepts integers only with a quantization_config"
        width = self._checkpoint.parts(name)[0][1][-1]
        group_size = quantization.inputs_per_scale(width)
        stored = [f"{part}_packed" for part in parts] if quantization.is_packed else parts
        values = self._read(stored, num_experts)
        scales = self._scales([f"{part}_scale" for part in parts], num_experts)
        if not quantization.is_packed:
            return StoredWeight("I8", values, scales, group_size)
        words = values.view(np.uint8)
        if quantization.bits == 4:
            return StoredWeight("I4", words, scales, group_size)
        np.bitwise_xor(words, 0x80, out=words)  # that subtracts 128
        return StoredWeight("I8", np.ascontiguousarray(words[..., :width]).view(np.int8), scales, group_size)

    def _scales(self, names: list[str], num_experts: int | None) -> np.ndarray:
        """float32, or the bits of bfloat16 where all are stored so. Raises CheckpointError if they are not finite."""
        arrays = []
        for name in names:
            file = self._checkpoint.file(name)
            entry = file.entries[name]
            raw = RawTensor(entry.dtype, entry.shape, self._read([name], None))
            # bfloat16 has all ones in its exponent then: on the bits, because there are many and they stay bits.
            is_finite = (raw.data & 0x7F80) != 0x7F80 if raw.dtype == "BF16" else np.isfinite(raw.data)
            if not is_finite.all():
                raise CheckpointError(f"{name} in {file.path.name} holds NaN or infinity")
            arrays.append(raw)
        is_bfloat16 = all(raw.dtype == "BF16" for raw in arrays)
        values = [raw.data if is_bfloat16 else raw.float32() for raw in arrays]
        return values[0] if num_experts is None else _fused(np.stack(values), num_experts)

    def _read(self, names: list[str], num_experts: int | None) -> np.ndarray:
        """Stored tensors of one shape and dtype: one as it is, or those of all experts as (E, all their outputs, …)."""
        entry = self._checkpoint.file(names[0]).entries[names[0]]
        whole: np.ndarray = np.empty((len(names), *entry.shape), DTYPES[entry.dtype])
        for index, name in enumerate(names):
            self._checkpoint.file(name).read_into(name, whole[index])
        return whole[0] if num_experts is None else _fused(whole, num_experts)

    def _transposed(self, name: str) -> np.ndarray:
        """Fused experts that are stored (E, in, out), as (E, out, in); one at a time."""
        file = self._checkpoint.file(name)
        num_experts, width, out = file.entries[name].shape
        one: np.ndarray = np.empty((width, out), DTYPES[file.entries[name].dtype])
        whole: np.ndarray = np.empty((num_experts, out, width), one.dtype)
        for expert in range(num_experts):
            file.read_into(name, one, expert * one.nbytes)
            copy_by_squares(one.T, whole[expert])
        return whole

    def _files(self) -> set[TensorFile]:
        return {self._checkpoint.file(name) for name in self._checkpoint.stored_names()}

    def _read_some(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._progress is not None:
            self._progress(min(self._done, self._all), self._all)


def _fused(matrices: np.ndarray, num_experts: int) -> np.ndarray:
    """(E or 2E, out, …) -> (E, all outputs of an expert, …), a view."""
    return matrices.reshape(num_experts, -1, matrices.shape[-1])
