"""Round a checkpoint's text weights to 8 or 4 bits, some rows at a time, into a new folder.

Symmetric, one bfloat16 scale per group of inputs, written as compressed-tensors `pack-quantized`. Integers and scales
are the nearest (`round_to_groups`), or those that a calibration chooses (network/calibration.py); nothing else differs.
Experts are written one by one (`experts.3.gate_proj.weight_packed`), as other writers of that format do. The embedding,
norms, gates and the vision tower become bfloat16, the router stays float32, the audio tower stays as it is; all other
files of the folder are copied.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from musespark.errors import CheckpointError
from musespark.model.checkpoint import Checkpoint, as_checkpoint
from musespark.model.checkpoint_folder import INDEX_FILE, copy_other_files, need_space, replacing_folder, write_json
from musespark.model.config import ModelConfig
from musespark.model.convert import split_into_shards
from musespark.model.pack_quantized import Bits, Quantization, pack
from musespark.model.squares import contiguous
from musespark.model.tensor_file import DTYPES, Dtype, RawTensor, TensorWriter, float32_to_bfloat16
from musespark.model.tensors import (
    AUDIO_PREFIX,
    Shape,
    expected_tensors,
    expert_parts,
    is_float32,
    is_fused_experts,
    is_quantizable,
    is_transposed,
)

# 8 bits at 64 and 4 bits at 32 inputs a scale: 8.25 and 4.5 bits a weight.
LARGEST_GROUP: dict[Bits, int] = {8: 64, 4: 32}
SMALLEST_GROUP = 8
SHARD_BYTES = 5 * 10**9  # what transformers writes
VALUES_AT_ONCE = 1 << 20  # 4 MiB in float32; a tensor is never converted whole

# The Linear modules that keep their type, for readers that go by the module list.
IGNORED_MODULES = (
    *("re:^model\\.vision_.*", "re:^model\\.audio_tower.*", "re:.*\\.mlp\\.gate$"),
    *("re:^vision_model\\..*", "re:^multi_modal_projector\\..*", "re:.*\\.router$"),  # Llama 4's names of the same
)

# float32 (rows, in) -> int8 (rows, in) and the bits of bfloat16 (rows, in / group_size)
Rounder = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Calibration(Protocol):
    """Whoever chooses integers by what the model reads, instead of the nearest."""

    identity: str  # what tells it from another one: a kept shard must not be another calibration's
    values_at_once: int

    def rounder(self, name: str, quantization: Quantization) -> Rounder:
        """For the matrix `name`. Matrices are asked for in the order of `expected_tensors`, each at most once."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix or other tensor of the source, and the tensors that it becomes: stored name -> (dtype, shape)."""

    name: str
    stored: dict[str, tuple[Dtype, Shape]]

    @property
    def size_bytes(self) -> int:
        return sum(math.prod(shape) * DTYPES[dtype].itemsize for dtype, shape in self.stored.values())


def quantize_checkpoint(
    source: Checkpoint | Path | str,
    target: Path | str,
    *,
    bits: Bits = 8,
    group_size: int | None = None,
    calibration: Calibration | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `source` at `bits` into the new folder `target`, which appears whole or not at all.

    After a kill, the same call goes on from the last whole shard. group_size: inputs that share a scale; it must divide
    the input width of every matrix. Without it, the largest up to 64 (8 bits) or 32 (4 bits) that does. progress(done,
    all) counts the bytes to write. Raises CheckpointError.
    """
    checkpoint = as_checkpoint(source)
    source, target = checkpoint.folder, Path(target)
    if checkpoint.weight_format is not None:
        raise CheckpointError(f"{source} is quantised already, to {checkpoint.weight_format}; start from the original")
    if target.resolve() == source.resolve():
        raise CheckpointError(f"{target} is the source itself; write the quantised checkpoint into another folder")
    if group_size is None:
        group_size = default_group_size(checkpoint.config, bits)
    if group_size < SMALLEST_GROUP:
        raise CheckpointError(f"group_size is {group_size}; below {SMALLEST_GROUP} the scales cost more than they save")
    quantization = Quantization(bits, group_size)
    parts = {part.name: part for part in (*quantized_parts(checkpoint.config, quantization), *_audio_parts(checkpoint))}
    shards = split_into_shards({name: part.size_bytes for name, part in parts.items()}, shard_bytes)
    writer = _Writer(_Matrices(checkpoint), quantization, calibration)
    total, done = sum(part.size_bytes for part in parts.values()), 0

    def advance(part: Part) -> None:
        nonlocal done
        done += part.size_bytes
        if progress is not None:
            progress(done, total)

    with replacing_folder(target, plan=_plan(source, quantization, calibration, shards)) as new:
        left = {file: names for file, names in shards.items() if not (new / file).is_file()}
        need_space(target, sum(parts[name].size_bytes for names in left.values() for name in names))
        copy_other_files(source, new)
        config = ModelConfig.read(source / "config.json")
        write_json(new / "config.json", {**config, "quantization_config": quantization.to_dict(IGNORED_MODULES)})
        for file, names in shards.items():
            inside = [parts[name] for name in names]
            if file not in left:
                for part in inside:
                    advance(part)
                continue
            begun = new / f"{file}.partial"  # only a whole shard ever has the name of one
            with TensorWriter(begun, {name: form for part in inside for name, form in part.stored.items()}) as out:
                for part in inside:
                    writer.write(part, out)
                    advance(part)
            begun.rename(new / file)
        if len(shards) > 1:
            files = {stored: file for file, names in shards.items() for name in names for stored in parts[name].stored}
            write_json(new / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": files})


def default_group_size(config: ModelConfig, bits: Bits) -> int:
    """The largest group up to 64 (8 bits) or 32 (4 bits) that divides every width. Raises CheckpointError below 8."""
    widths = [
        shape[1] if is_transposed(name) else shape[-1]
        for name, shape in expected_tensors(config).items()
        if is_quantizable(name)
    ]
    group_size = math.gcd(LARGEST_GROUP[bits], *widths)
    if group_size < SMALLEST_GROUP:
        raise CheckpointError(
            f"no group of at least {SMALLEST_GROUP} inputs divides every width of this model "
            f"({', '.join(map(str, sorted(set(widths))))}); quantising it would not make it smaller"
        )
    return group_size


def quantized_parts(config: ModelConfig, quantization: Quantization) -> Iterator[Part]:
    """What the quantised checkpoint holds. CheckpointError if a width isn't whole groups."""
    for name, shape in expected_tensors(config).items():
        if not is_quantizable(name):
            yield Part(name, {name: ("F32" if is_float32(name) else "BF16", shape)})
            continue
        for matrix, (out, width) in expert_parts(name, shape) if is_fused_experts(name) else [(name, shape)]:
            if width % quantization.inputs_per_scale(width):
                raise CheckpointError(
                    f"group_size {quantization.group_size} doesn't divide the {width:,} inputs of {matrix}"
                )
            stored: dict[str, tuple[Dtype, Shape]] = {
                f"{matrix}_packed": ("I32", (out, quantization.packed_width(width))),
                f"{matrix}_scale": ("BF16", (out, width // quantization.inputs_per_scale(width))),
                f"{matrix}_shape": ("I64", (2,)),
            }
            yield Part(matrix, stored)


def _audio_parts(checkpoint: Checkpoint) -> Iterator[Part]:
    """The audio tower of Muse Spark, if it is there: nothing here reads it, so it is copied as it is."""
    for name in checkpoint.stored_names():
        if name.startswith(AUDIO_PREFIX):
            raw = checkpoint.tensor(name)
            yield Part(name, {name: (raw.dtype, raw.shape)})


def round_to_groups(matrix: np.ndarray, bits: Bits, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric round to nearest of float32 (out, in) to int8 (out, in) and bfloat16 bits (out, in / group_size).

    The largest magnitude of a group maps to 127 or 7. Values are rounded against the scale as it is stored, so that
    rounding the scale adds no error of its own. A group of zeros has scale 0.
    """
    largest = (1 << (bits - 1)) - 1
    groups = matrix.reshape(len(matrix), -1, group_size)
    stored_scales = float32_to_bfloat16(np.abs(groups).max(axis=-1) / largest)
    scales = (stored_scales.astype(np.uint32) << 16).view(np.float32)[..., None]
    ratios = np.divide(groups, scales, out=np.zeros_like(groups), where=scales != 0)
    values = np.clip(np.rint(ratios), -largest, largest).astype(np.int8)
    return values.reshape(matrix.shape), stored_scales


class _Matrices:
    """The source's matrices under their unfused names, without reading a whole fused tensor for one expert."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._stored = set(checkpoint.stored_names())
        self._in_fused = {
            part: (name, index, part_shape)
            for name in checkpoint.names()
            if is_fused_experts(name) and name in self._stored
            for index, (part, part_shape) in enumerate(expert_parts(name, checkpoint.shape(name)))
        }

    def tensor(self, name: str) -> RawTensor:
        """A view into the mapped file."""
        if name in self._stored:
            return self._checkpoint.tensor(name)
        fused, index, shape = self._in_fused[name]
        raw = self._checkpoint.tensor(fused)
        parts_per_expert = len(expert_parts(fused, (1, *raw.shape[1:])))
        expert, part = divmod(index, parts_per_expert)
        matrix = raw.data[expert].T if is_transposed(fused) else raw.data[expert]  # (out of all its parts, in)
        return RawTensor(raw.dtype, shape, matrix[part * shape[0] : (part + 1) * shape[0]])


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes one part after the other, a few rows at a time."""

    matrices: _Matrices
    quantization: Quantization
    calibration: Calibration | None

    def write(self, part: Part, out: TensorWriter) -> None:
        raw = self.matrices.tensor(part.name)
        if part.name in part.stored:
            dtype, _ = part.stored[part.name]
            for start, rows in _some_rows(raw, VALUES_AT_ONCE):
                if rows.dtype != dtype:
                    assert dtype in ("F32", "BF16"), "the rest keeps its type"
                    rows = rows.cast(dtype)
                out.write(part.name, rows.data, start)
            return
        rounder, values_at_once = self._rounder(part.name, raw.shape[1])
        for start, rows in _some_rows(raw, values_at_once):
            matrix = rows.float32()
            if not np.isfinite(matrix).all():
                raise CheckpointError(f"{part.name} holds NaN or infinity; it can't be quantised")
            values, scales = rounder(matrix)
            out.write(f"{part.name}_packed", pack(values, self.quantization.bits), start)
            out.write(f"{part.name}_scale", scales, start)
        out.write(f"{part.name}_shape", np.array(raw.shape, np.int64))

    def _rounder(self, name: str, width: int) -> tuple[Rounder, int]:
        if self.calibration is not None:
            return self.calibration.rounder(name, self.quantization), self.calibration.values_at_once
        bits, group_size = self.quantization.bits, self.quantization.inputs_per_scale(width)
        return lambda matrix: round_to_groups(matrix, bits, group_size), VALUES_AT_ONCE


def _some_rows(raw: RawTensor, values_at_once: int) -> Iterator[tuple[int, RawTensor]]:
    """(first row, rows) of a tensor, views unless transposed; at least one row at a time, a single number at once."""
    if raw.shape == ():
        yield 0, raw
        return
    step = max(1, values_at_once // max(1, math.prod(raw.shape[1:])))
    for start in range(0, raw.shape[0], step):
        data = contiguous(raw.data[start : start + step])
        yield start, RawTensor(raw.dtype, data.shape, data)


def _plan(
    source: Path, quantization: Quantization, calibration: Calibration | None, shards: dict[str, list[str]]
) -> str:
    """What tells two runs apart: the source as it is now, what becomes of it, and which file holds what."""
    files = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(source.iterdir())}
    to = [quantization.bits, quantization.group_size, calibration.identity if calibration else None]
    return json.dumps({"source": str(source.resolve()), "files": files, "to": to, "shards": shards})
