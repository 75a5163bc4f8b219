"""From one spelling of a checkpoint to another, all of them the Hugging Face layout: one tensor at a time, into a new
folder that appears whole or not at all.

What may change: quantised weights become bfloat16 or float32, experts are fused into one tensor or written one by one
(as other engines and quantisers want them), and the weights lie in one file or in shards. Shards that a killed run has
finished are kept by the next one with the same arguments. `gguf.py` writes the other format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from musespark.errors import CheckpointError
from musespark.model.checkpoint import Checkpoint, open_checkpoint
from musespark.model.checkpoint_folder import (
    INDEX_FILE,
    MAX_SHARDS,
    WEIGHTS_FILE,
    copy_other_files,
    need_space,
    replacing_folder,
    write_json,
)
from musespark.model.config import ModelConfig
from musespark.model.squares import copy_by_squares
from musespark.model.tensor_file import DTYPES, FLOAT_DTYPES, Dtype, RawTensor, write_tensors
from musespark.model.tensors import Shape, expert_parts, is_float32, is_fused_experts, is_transposed
from musespark.model.weight_formats import MODELOPT_FILE
from musespark.model.weights import Plain, Weight

FloatDtype = Literal["F32", "BF16"]
Experts = Literal["fused", "unfused"]
# Of the tensors beside a quantised weight, see weight_formats.py.
QUANTIZED_SUFFIXES = ("_packed", "_scale", "_shape", "_weight_scale", "_weight_scale_2", "_input_scale")
DTYPE_NAMES: dict[FloatDtype, str] = {"F32": "float32", "BF16": "bfloat16"}  # in config.json


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of the new checkpoint; load() makes it."""

    dtype: Dtype
    shape: Shape
    load: Callable[[], RawTensor]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def convert_to_hf(
    source: Path | str,
    target: Path | str,
    *,
    dtype: FloatDtype | None = None,
    experts: Experts | None = None,
    shard_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the checkpoint folder `source` anew as the folder `target`.

    dtype: what all weights become, but for a router, which bfloat16 leaves as it is; None keeps every type, and
    quantised weights as they are stored. experts: how they are spelled; None as in the source. shard_bytes: the most
    that one file holds, unless a single tensor is larger; None for one file. progress(done, all) counts bytes.
    Raises CheckpointError.
    """
    source, target = Path(source), Path(target)
    checkpoint = open_checkpoint(source)
    if target.resolve() == source.resolve():
        raise CheckpointError(f"{target} is the source itself; write the converted checkpoint into another folder")
    expands = checkpoint.weight_format is not None and dtype is not None
    if checkpoint.weight_format is not None and dtype is None:
        if experts is not None:
            raise CheckpointError(
                f"{source} is quantised, to {checkpoint.weight_format}; its experts can be {experts} only as floats: "
                "say a dtype, too"
            )
        tensors = {name: _copied(checkpoint, name, None) for name in checkpoint.stored_names()}
    else:
        tensors = _expanded(checkpoint, dtype, experts)
    shards = split_into_shards({name: tensor.size_bytes for name, tensor in tensors.items()}, shard_bytes)
    plan = _plan(source, tensors, shards)
    total, done = sum(tensor.size_bytes for tensor in tensors.values()), 0

    def load(name: str) -> RawTensor:
        nonlocal done
        raw = tensors[name].load()
        done += tensors[name].size_bytes
        if progress is not None:
            progress(done, total)
        return raw

    with replacing_folder(target, plan=plan) as new:
        finished = {file for file in shards if (new / file).is_file()}
        need_space(target, sum(tensors[name].size_bytes for file in shards.keys() - finished for name in shards[file]))
        copy_other_files(source, new, leave_out=(MODELOPT_FILE,) if expands else ())
        write_json(new / "config.json", _config(ModelConfig.read(source / "config.json"), dtype, expands=expands))
        for file, names in shards.items():
            if file in finished:
                done += sum(tensors[name].size_bytes for name in names)
                continue
            layout = {name: (tensors[name].dtype, tensors[name].shape) for name in names}
            begun = new / f"{file}.partial"  # only a whole shard ever has the name of one
            write_tensors(begun, layout, load)
            begun.rename(new / file)
        if len(shards) > 1:
            weight_map = {name: file for file, names in shards.items() for name in names}
            write_json(new / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def split_into_shards(sizes: Mapping[str, int], limit: int | None) -> dict[str, list[str]]:
    """File -> its tensors, in their order, each file as full as `limit` bytes let it be. Raises CheckpointError."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if limit is not None and groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) > MAX_SHARDS:
        raise CheckpointError(f"shards of {limit:,} bytes would be {len(groups):,} files; at most {MAX_SHARDS:,} are")
    if len(groups) == 1:
        return {WEIGHTS_FILE: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": names for i, names in enumerate(groups, start=1)}


def _copied(checkpoint: Checkpoint, name: str, dtype: Dtype | None) -> Stored:
    """A tensor as stored, in another float type if it holds floats."""
    raw = checkpoint.tensor(name)
    kept = raw.dtype if dtype is None or raw.dtype not in FLOAT_DTYPES else dtype
    return Stored(kept, raw.shape, lambda: _cast(Plain(checkpoint.tensor(name)), kept))


def _expanded(checkpoint: Checkpoint, dtype: FloatDtype | None, experts: Experts | None) -> dict[str, Stored]:
    """Every logical tensor in floats, and what the files hold beside them: the audio tower of Muse Spark."""
    stored_names = frozenset(checkpoint.stored_names())
    used: set[str] = set()
    tensors: dict[str, Stored] = {}

    def new_dtype(name: str) -> Dtype:
        stored = checkpoint.file(name).entries[name].dtype if name in stored_names else None
        # A router in float32 stays so in bfloat16: it decides on small differences.
        if stored is not None and (dtype is None or (is_float32(name) and stored == "F32")):
            return stored
        assert dtype is not None, "without a dtype, quantised weights are not expanded"
        return dtype

    for name in checkpoint.names():
        parts = checkpoint.stored_parts(name)
        used.update(part for part, _ in parts)
        shape, is_fused, kept = checkpoint.shape(name), parts[0][0] == name, new_dtype(parts[0][0])
        if not is_fused_experts(name):
            tensors[name] = Stored(kept, shape, partial(_load, checkpoint, name, kept))
            continue
        stack = _Experts(checkpoint, name, is_fused=is_fused, dtype=kept)
        if experts == "unfused" or (experts is None and not is_fused):
            for index, (part, part_shape) in enumerate(stack.parts):
                tensors[part] = Stored(kept, part_shape, partial(stack.matrix, index))
        else:
            tensors[name] = Stored(kept, shape, stack.fused)
    for name in checkpoint.stored_names():
        # Not the scales and shapes of what was quantised: they are in the values now.
        if name not in used and not any(name.removesuffix(suffix) in used for suffix in QUANTIZED_SUFFIXES):
            tensors[name] = _copied(checkpoint, name, dtype)
    return tensors


def _load(checkpoint: Checkpoint, name: str, dtype: Dtype) -> RawTensor:
    return _cast(checkpoint.stored_weight(name), dtype)


def _cast(weight: Weight, dtype: Dtype) -> RawTensor:
    if isinstance(weight, Plain) and weight.raw.dtype == dtype:
        return weight.raw
    assert dtype in ("F32", "BF16"), "only these are asked for; another type is one that is kept"
    values = weight.float32()
    return RawTensor("F32", values.shape, values).cast(dtype)


class _Experts:
    """The matrices of one tensor of experts, in the order of `expert_parts`, whichever way they are stored."""

    def __init__(self, checkpoint: Checkpoint, name: str, *, is_fused: bool, dtype: Dtype) -> None:
        self._checkpoint, self._name, self._is_fused, self._dtype = checkpoint, name, is_fused, dtype
        self._shape = checkpoint.shape(name)
        self.parts = expert_parts(name, self._shape)
        self._per_expert = len(self.parts) // self._shape[0]
        self._whole: Weight | None = None  # held from the first matrix to the last: a packed stack is unpacked once

    def matrix(self, index: int) -> RawTensor:
        """(out, in); asked for in order."""
        name, _ = self.parts[index]
        if not self._is_fused:
            return _cast(self._checkpoint.stored_weight(name), self._dtype)
        whole = self._whole or self._checkpoint.weight(self._name)
        self._whole = None if index == len(self.parts) - 1 else whole
        expert, rows = self._place(index)
        return _cast(whole.expert(expert).rows(rows.start, rows.stop), self._dtype)

    def fused(self) -> RawTensor:
        """All of them, in the layout that transformers has."""
        fused = np.empty(self._shape, DTYPES[self._dtype])
        as_rows = fused.swapaxes(1, 2) if is_transposed(self._name) else fused  # (E, out, in), a view
        for index in range(len(self.parts)):
            copy_by_squares(self.matrix(index).data, as_rows[self._place(index)])
        return RawTensor(self._dtype, self._shape, fused)

    def _place(self, index: int) -> tuple[int, slice]:
        """The expert, and the rows of it that are this matrix: its gate or its up half, or all."""
        expert, half = divmod(index, self._per_expert)
        rows = self.parts[index][1][0]
        return expert, slice(half * rows, (half + 1) * rows)


def _config(config: dict[str, Any], dtype: FloatDtype | None, *, expands: bool) -> dict[str, Any]:
    """config.json of the new folder. Where it names a type of weights, that is the new one."""
    if expands:
        config = {name: value for name, value in config.items() if name != "quantization_config"}
    if dtype is None:
        return config

    def renamed(part: dict[str, Any]) -> dict[str, Any]:
        new = {
            name: renamed(value) if name.endswith("_config") and isinstance(value, dict) else value
            for name, value in part.items()
        }
        return new | {name: DTYPE_NAMES[dtype] for name in ("dtype", "torch_dtype") if part.get(name) is not None}

    return renamed(config)


def _plan(source: Path, tensors: Mapping[str, Stored], shards: Mapping[str, list[str]]) -> str:
    """What tells two conversions apart: the source as it is now, and every tensor and its file."""
    files = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(source.iterdir())}
    layout = {
        file: [(name, tensors[name].dtype, tensors[name].shape) for name in names] for file, names in shards.items()
    }
    return json.dumps({"source": str(source.resolve()), "files": files, "shards": layout})
