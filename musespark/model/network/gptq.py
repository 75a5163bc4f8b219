"""Choosing the integers of a matrix by what it reads: errors that its inputs don't show are free.

The inputs of a calibration text say how much each input, and each pair of them, matters: H = XᵀX / n. The columns of a
row are rounded from left to right, and what rounding one of them changes in the output is made up for in the columns
that are still to come (GPTQ, arXiv 2210.17323); the scale of a group is the one, of a few, whose rounding errors weigh
least. Integers and scales are all that differs from rounding to nearest. Letters: n rows of inputs, in, out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from musespark.model.pack_quantized import Bits

# Of the scale at which the largest magnitude of a group is the largest integer. 0.875 is where it becomes -8 of 4 bits.
SCALE_RATIOS = (*(step / 40 for step in range(24, 43, 2)), 0.875)
# Diagonal added to H, as a part of its mean: inputs that never came must not be taken for inputs that never come.
DAMPING = 0.01
COLUMNS_AT_ONCE = 128  # later columns hear of the errors of so many together, in one matrix product


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """What errors cost. importance (in,): the diagonal of H; factor (in, in): the upper Cholesky factor of H⁻¹."""

    importance: Tensor
    factor: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> Objective:
        """inputs (n, in) float32; n may be 0, then all inputs count the same."""
        moment = inputs.T @ inputs / max(1, len(inputs))
        # Fewer rows than inputs say little of pairs, so that pairs count less then.
        trust = len(inputs) / (len(inputs) + inputs.shape[1])
        diagonal = moment.diagonal().clone()
        mean = float(diagonal.mean()) or 1.0
        moment *= trust
        moment.diagonal().copy_(diagonal + DAMPING * mean)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
        return cls(moment.diagonal().clone(), torch.linalg.cholesky(inverse, upper=True))


def round_by_inputs(
    matrix: np.ndarray, objective: Objective, bits: Bits, group_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """float32 (out, in) -> int8 (out, in) and bfloat16 bits (out, in / group_size), as `round_to_groups` gives them."""
    left = torch.from_numpy(matrix.copy())  # what is to be rounded: the weights, and the errors made before them
    values = torch.empty(left.shape, dtype=torch.int8)
    scales = torch.empty(len(left), left.shape[1] // group_size)
    step = group_size * max(1, COLUMNS_AT_ONCE // group_size)
    low, high = _range(bits)
    for start in range(0, left.shape[1], step):
        some = left[:, start : start + step]  # a view
        factor = objective.factor[start : start + step, start : start + step]
        errors = torch.empty_like(some)
        for i in range(some.shape[1]):
            if i % group_size == 0:
                group = slice(i, i + group_size)
                scale = _best_scale(some[:, group], objective.importance[start:][group], bits)
                scales[:, (start + i) // group_size] = scale
                inverse = torch.where(scale != 0, 1 / scale, 0)
            rounded = (some[:, i] * inverse).round().clamp(low, high)
            values[:, start + i] = rounded.to(torch.int8)
            errors[:, i] = (some[:, i] - rounded * scale) / factor[i, i]
            some[:, i + 1 :] -= errors[:, i, None] * factor[i, i + 1 :]
        left[:, start + step :] -= errors @ objective.factor[start : start + step, start + step :]
    return values.numpy(), scales.bfloat16().view(torch.int16).numpy().view(np.uint16)


def _best_scale(group: Tensor, importance: Tensor, bits: Bits) -> Tensor:
    """(out,) for weights (out, group): the scale, exact in bfloat16, of the least weighted rounding error."""
    low, high = _range(bits)
    largest = group.abs().amax(-1)
    best = torch.zeros_like(largest)
    least = torch.full_like(largest, torch.inf)
    for ratio in SCALE_RATIOS:
        scale = (largest * (ratio / high)).bfloat16().float()
        steps = scale[:, None]
        rounded = torch.where(steps != 0, group / steps, 0).round().clamp(low, high)
        error = (rounded * steps - group).square() @ importance
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def _range(bits: Bits) -> tuple[int, int]:
    """Of 4 bits all sixteen integers; of 8 bits not -128, which kernels for symmetric int8 leave out."""
    return (-8, 7) if bits == 4 else (-127, 127)
