"""Round a checkpoint's text weights to 8 or 4 bits, one matrix at a time, into a new folder.

Round to nearest, symmetric, one bfloat16 scale per group of inputs, written as compressed-tensors `pack-quantized`.
Experts are written one by one (`experts.3.gate_proj.weight_packed`), as other writers of that format do. The embedding,
norms, gates and the vision tower become bfloat16, the router stays float32; all other files of the folder are copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from musespark.errors import CheckpointError
from musespark.model.checkpoint import Checkpoint, open_checkpoint
from musespark.model.checkpoint_folder import (
    INDEX_FILE,
    PICKLE_SUFFIXES,
    WEIGHTS_FILE,
    replacing_folder,
    write_file,
    write_json,
)
from musespark.model.config import ModelConfig
from musespark.model.pack_quantized import Bits, Quantization, pack
from musespark.model.tensor_file import Dtype, RawTensor, float32_to_bfloat16, write_tensors
from musespark.model.tensors import (
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

# The Linear modules that keep their type, for readers that go by the module list.
IGNORED_MODULES = (
    *("re:^model\\.vision_.*", "re:^model\\.audio_tower.*", "re:.*\\.mlp\\.gate$"),
    *("re:^vision_model\\..*", "re:^multi_modal_projector\\..*", "re:.*\\.router$"),  # Llama 4's names of the same
)


def quantize_checkpoint(
    source: Path | str,
    target: Path | str,
    *,
    bits: Bits = 8,
    group_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `source` at `bits` into the new folder `target`, which appears whole or not at all.

    group_size: inputs that share a scale; it must divide the input width of every matrix. Without it, the largest up to
    64 (8 bits) or 32 (4 bits) that does. progress(done, all) is called before each tensor. Raises CheckpointError.
    """
    source, target = Path(source), Path(target)
    checkpoint = open_checkpoint(source)
    if checkpoint.weight_format is not None:
        raise CheckpointError(f"{source} is quantised already, to {checkpoint.weight_format}; start from the original")
    if target.resolve() == source.resolve():
        raise CheckpointError(f"{target} is the source itself; write the quantised checkpoint into another folder")
    if group_size is None:
        group_size = default_group_size(checkpoint.config, bits)
    if group_size < SMALLEST_GROUP:
        raise CheckpointError(f"group_size is {group_size}; below {SMALLEST_GROUP} the scales cost more than they save")
    quantization = Quantization(bits, group_size)
    layout = quantized_layout(checkpoint.config, quantization)
    matrices = _Matrices(checkpoint)
    done = 0

    def load(name: str) -> RawTensor:
        nonlocal done
        if progress is not None:
            progress(done, len(layout))
        done += 1
        return _quantized_tensor(matrices, name, quantization)

    with replacing_folder(target) as new:
        _copy_other_files(source, new)
        config = ModelConfig.read(source / "config.json")
        write_json(new / "config.json", {**config, "quantization_config": quantization.to_dict(IGNORED_MODULES)})
        write_tensors(new / WEIGHTS_FILE, layout, load)


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


def quantized_layout(config: ModelConfig, quantization: Quantization) -> dict[str, tuple[Dtype, Shape]]:
    """Stored name -> (dtype, shape) of the quantised checkpoint. CheckpointError if a width isn't whole groups."""
    layout: dict[str, tuple[Dtype, Shape]] = {}
    for name, shape in expected_tensors(config).items():
        if not is_quantizable(name):
            layout[name] = ("F32" if is_float32(name) else "BF16", shape)
            continue
        for part, (out, width) in expert_parts(name, shape) if is_fused_experts(name) else [(name, shape)]:
            if width % quantization.inputs_per_scale(width):
                raise CheckpointError(
                    f"group_size {quantization.group_size} doesn't divide the {width:,} inputs of {part}"
                )
            layout[f"{part}_packed"] = ("I32", (out, quantization.packed_width(width)))
            layout[f"{part}_scale"] = ("BF16", (out, width // quantization.inputs_per_scale(width)))
            layout[f"{part}_shape"] = ("I64", (2,))
    return layout


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
        if name in self._stored:
            return self._checkpoint.tensor(name)
        fused, index, shape = self._in_fused[name]
        raw = self._checkpoint.tensor(fused)
        parts_per_expert = len(expert_parts(fused, (1, *raw.shape[1:])))
        expert, part = divmod(index, parts_per_expert)
        matrix = raw.data[expert].T if is_transposed(fused) else raw.data[expert]  # (out of all its parts, in)
        return RawTensor(raw.dtype, shape, matrix[part * shape[0] : (part + 1) * shape[0]])


def _quantized_tensor(matrices: _Matrices, name: str, quantization: Quantization) -> RawTensor:
    """One tensor of `quantized_layout`. Values and scales come from the same rounding, done once for each."""
    weight, _, kind = name.rpartition("_")
    if not weight.endswith(".weight"):
        return matrices.tensor(name).cast("F32" if is_float32(name) else "BF16")
    raw = matrices.tensor(weight)
    if kind == "shape":
        return RawTensor("I64", (2,), np.array(raw.shape, np.int64))
    matrix = raw.float32()
    if not np.isfinite(matrix).all():
        raise CheckpointError(f"{weight} holds NaN or infinity; it can't be quantised")
    values, scales = round_to_groups(matrix, quantization.bits, quantization.inputs_per_scale(raw.shape[1]))
    if kind == "scale":
        return RawTensor("BF16", scales.shape, scales)
    packed = pack(values, quantization.bits)
    return RawTensor("I32", packed.shape, packed)


def _copy_other_files(source: Path, target: Path) -> None:
    """Everything beside the weights and the config: tokenizer, chat settings, card. Pickles are left behind."""
    for path in sorted(source.iterdir()):
        weights = path.suffix in (".safetensors", *PICKLE_SUFFIXES) or path.name == INDEX_FILE
        if path.is_file() and not weights and path.name != "config.json":
            write_file(target / path.name, path)
