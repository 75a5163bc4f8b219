"""Expert matrices over tokens sorted by expert, with gradients that gather instead of scattering."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class GroupedLinear(torch.autograd.Function):
    """Rows sorted by expert times each expert's matrix: x (R, in), w (E, out, in), rows per expert -> (R, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.counts = counts
        out = x.new_empty(x.shape[0], w.shape[1])
        for part, x_part, matrix in zip(out.split(counts), x.split(counts), w, strict=True):
            torch.mm(x_part, matrix.mT, out=part)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grad_w = torch.empty_like(x), torch.empty_like(w)
        parts = zip(grad.split(ctx.counts), x.split(ctx.counts), grad_x.split(ctx.counts), w, grad_w, strict=True)
        for grad_part, x_part, grad_x_part, matrix, grad_matrix in parts:
            torch.mm(grad_part, matrix, out=grad_x_part)
            torch.mm(grad_part.mT, x_part, out=grad_matrix)
        return grad_x, grad_w, None


class Dispatch(torch.autograd.Function):
    """Copies each token to its k places in expert order. The gradient gathers too: no scattered adds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back).view(-1, ctx.k, grad.shape[-1]).sum(1), None, None, None


class Permute(torch.autograd.Function):
    """x[index], where `inverse` is the inverse permutation of `index`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None
