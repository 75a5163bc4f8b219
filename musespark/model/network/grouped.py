"""Two operations for rows sorted by expert, with gradients written by hand.

Both are opaque to torch.compile, which neither breaks nor looks inside. `grouped_linear` needs the group sizes on the
host, which would break a compiled graph. `permute_rows` knows the inverse permutation, so its gradient is a gather too;
autograd's own would be a scatter-add, row after row on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("musespark::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Group g of the rows of x times weight[g]ᵀ.

    x (R, in), rows sorted by group; weight (G, out, in) of the same type; counts (G,) int64 summing to R.
    Returns (R, out). A group may be empty.
    """
    out = x.new_empty(x.shape[0], weight.shape[1])
    for g, (rows, target) in enumerate(zip(_split(x, counts), _split(out, counts), strict=True)):
        torch.mm(rows, weight[g].t(), out=target)
    return out


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("musespark::grouped_linear_backward", mutates_args=())
def grouped_linear_backward(grad: Tensor, x: Tensor, weight: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `grouped_linear` to x and weight; grad (R, out)."""
    grad = grad.contiguous()
    grad_x, grad_weight = x.new_empty(x.shape), weight.new_empty(weight.shape)
    groups = zip(_split(grad, counts), _split(x, counts), _split(grad_x, counts), strict=True)
    for g, (grad_rows, rows, grad_x_rows) in enumerate(groups):
        torch.mm(grad_rows, weight[g], out=grad_x_rows)
        torch.mm(grad_rows.t(), rows, out=grad_weight[g])  # an empty group gives zeros
    return grad_x, grad_weight


@grouped_linear_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _split(rows: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
    return rows.split(counts.tolist())


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_linear_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return (*grouped_linear_backward(grad, *ctx.saved_tensors), None)


grouped_linear.register_autograd(_grouped_linear_gradients, setup_context=_save)


@torch.library.custom_op("musespark::permute_rows", mutates_args=())
def permute_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """x[order] for a permutation `order` (R,) int64 of the rows of x (R, …), with the given inverse."""
    return x.index_select(0, order)


@permute_rows.register_fake
def _(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save_permutation(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _permute_rows_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    order, inverse = ctx.saved_tensors
    return permute_rows(grad, inverse, order), None, None


permute_rows.register_autograd(_permute_rows_gradients, setup_context=_save_permutation)
