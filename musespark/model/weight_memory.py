"""What the weights of a model take in the memory of the native runner, before any of them is read.

The runner (engine/csrc/pack.cpp) keeps a matrix in panels of 16 outputs: a last panel is filled up, integers have their
scales behind them, and a panel begins at a multiple of 64 bytes. Vectors, and the tables that are used row by row, are
float32. So memory is not what the files hold; it is the same to a percent where a model isn't tiny.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from musespark.model.checkpoint import Checkpoint
from musespark.model.config import ModelConfig
from musespark.model.tensors import Shape, expected_tensors, is_quantizable, is_transposed

Precision = Literal["float32", "bf16", "int8", "int4"]

PANEL = 16
ALIGNMENT = 64
DEFAULT_GROUP = 32  # where floats are rounded to integers while they are read
INTEGERS = ("I4", "I8")
STACKED = re.compile(r"\.(q|k|v|gate|up)_proj\.")  # what reads the same rows lies in one matrix, under each other


@dataclass(frozen=True, slots=True)
class Form:
    """How a tensor is stored: a dtype of safetensors, or "I4", and for integers what they share a scale with.

    Floats that will be rounded to integers have the group in which that is done.
    """

    dtype: str
    group_size: int = 0
    has_wide_scales: bool = False


def weight_bytes(shapes: Mapping[str, Shape], form: Callable[[str], Form], precision: Precision) -> int:
    """Bytes that the native runner takes for tensors of these shapes, stored in the form that `form` says."""
    num_bytes = 0
    stacks: dict[str, list[tuple[str, Shape]]] = {}
    for name, shape in shapes.items():
        if ".embed_tokens." in name:
            num_bytes += math.prod(shape) * (4 if form(name).dtype == "F32" else 2)  # as it is stored
        elif len(shape) == 1 or "position" in name:  # no product is computed with these
            num_bytes += math.prod(shape) * 4
        else:
            stacks.setdefault(STACKED.sub("._proj.", name), []).append((name, shape))
    return num_bytes + sum(
        _stack_bytes([(name, _outputs_first(name, shape), form(name)) for name, shape in stack], precision)
        for stack in stacks.values()
    )


def planned_weight_bytes(checkpoint: Checkpoint, precision: Precision) -> int:
    """Bytes that the native runner will take for the weights of this checkpoint."""
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
    return weight_bytes(shapes, lambda name: stored_form(checkpoint, name, precision), precision)


def loadable_precisions(checkpoint: Checkpoint) -> tuple[Precision, ...]:
    """Those in which a runner can hold it: not int4 what is stored in eight bits, for that would be rounding twice."""
    in_bytes = checkpoint.quantization is not None and checkpoint.quantization.bits == 8
    return ("float32", "bf16", "int8") if in_bytes else ("float32", "bf16", "int8", "int4")


def largest_tensor_bytes(checkpoint: Checkpoint) -> int:
    """What the largest logical tensor takes as it is stored: the memory that reading needs beside the weights."""
    sizes: list[int] = []
    for name in checkpoint.names():
        stored = [part for part, _ in checkpoint.parts(name)]
        if checkpoint.kind(stored[0]) == "packed":
            stored = [f"{part}_packed" for part in stored]
        entries = [checkpoint.file(part).entries[part] for part in stored]
        sizes.append(sum(entry.end - entry.start for entry in entries))
    return max(sizes)


def rounding_group(is_quantized: bool, precision: Precision) -> int:
    """Inputs that share a scale where floats of the text are rounded to integers; 0 where they stay floats.

    A checkpoint that has integers has left the others as they are on purpose. int8 rounds those too, since it costs
    next to nothing of what they say; int4 doesn't.
    """
    return DEFAULT_GROUP if precision == "int8" or (precision == "int4" and not is_quantized) else 0


def stored_form(checkpoint: Checkpoint, name: str, precision: Precision) -> Form:
    """The form of a logical tensor of a checkpoint."""
    part, (*_, width) = checkpoint.parts(name)[0]
    kind, quantization = checkpoint.kind(part), checkpoint.quantization
    if kind not in ("packed", "I8") or quantization is None:
        return Form(kind, rounding_group(quantization is not None, precision))
    scales = f"{part}_scale"
    is_wide = checkpoint.file(scales).entries[scales].dtype != "BF16"
    return Form("I4" if quantization.bits == 4 else "I8", quantization.inputs_per_scale(width), is_wide)


def _outputs_first(name: str, shape: Shape) -> Shape:
    """(…, out, in) of a matrix or of experts, as the runner has it."""
    *stack, out, width = shape
    if name.endswith("patch_embedder.patch_embedding.weight"):
        width //= 2  # the two frames of a still image are added up
    return (*stack, width, out) if is_transposed(name) else (*stack, out, width)


def _stack_bytes(stack: list[tuple[str, Shape, Form]], precision: Precision) -> int:
    """Matrices under each other, in panels; in integers only as wide as the widest of them."""
    bits = max(_bits(name, form, precision) for name, _, form in stack)
    *experts, _, width = stack[0][1]
    num_panels = -(-sum(out for _, (*_, out, _), _ in stack) // PANEL)
    if bits >= 16:
        depth = width + (width % 2 if bits == 16 else 0)
        return math.prod(experts) * num_panels * PANEL * depth * bits // 8
    # Those that will be rounded take the group of those that are integers already.
    group_size = next((form.group_size for _, _, form in stack if form.dtype in INTEGERS), stack[0][2].group_size)
    scale_bytes = 4 if any(form.has_wide_scales for _, _, form in stack) else 2
    num_groups = -(-width // group_size)
    panel = PANEL * num_groups * (group_size * bits // 8 + scale_bytes)
    return math.prod(experts) * num_panels * -(-panel // ALIGNMENT) * ALIGNMENT


def _bits(name: str, form: Form, precision: Precision) -> int:
    """Bits of a value in memory."""
    if precision == "float32" or name.endswith((".mlp.gate.weight", ".router.weight")):
        return 32
    if precision == "bf16" or not is_quantizable(name) or not form.group_size:
        return 16
    return 8 if precision == "int8" or form.dtype == "I8" or form.group_size % 8 else 4


def weight_bytes_of(config: ModelConfig, precision: Precision, group_size: int | None) -> int:
    """The same for a checkpoint of `config` that is stored in this precision, integers in groups of `group_size`."""

    def form(name: str) -> Form:
        if group_size is not None and is_quantizable(name):
            return Form("I4" if precision == "int4" else "I8", group_size)
        return Form("F32" if precision == "float32" else "BF16")

    return weight_bytes(expected_tensors(config), form, precision)
