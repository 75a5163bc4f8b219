"""The head and its cross-entropy, a slice of rows at a time, without ever keeping the logits of a batch.

Letters: n rows that are learned, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOGIT_ROWS = 512  # rows of logits alive at once: 512 * 16,384 bfloat16 fit the last-level cache


def softmax_gradient(raw: Tensor, learned: Tensor, scale: float, cap: float) -> tuple[Tensor, Tensor]:
    """Of raw head outputs (n, V): the sums (n, 1) of exp(logit - cap), and the gradient but for the targets' own part.

    The cap bounds every logit, so no maximum is looked for. tanh is written with exp, which is vectorised better, and
    the targets' part is left to the caller: comparing indices here would halve the speed.
    """
    squashed = 1 - 2 / ((raw.float() * (2 * scale / cap)).exp() + 1)
    exponentials = (cap * squashed - cap).exp()
    total = exponentials.sum(-1, keepdim=True)
    gradient = exponentials * (1 - squashed * squashed) * (learned[:, None] * scale / total)
    return total, gradient.to(raw.dtype)


def cross_entropy(
    raw: Tensor, targets: Tensor, scale: float, cap: float, softmax_gradient: Any
) -> tuple[Tensor, Tensor]:
    """Summed loss and its gradient by the raw head outputs (n, V), soft cap included.

    A negative target is no target. `softmax_gradient` is the function above, compiled or not.
    """
    learned = (targets >= 0).float()
    total, gradient = softmax_gradient(raw, learned, scale, cap)
    places = targets.clamp(min=0)[:, None]
    squashed = torch.tanh(raw.gather(1, places).float() * (scale / cap))
    loss = ((total.log() + cap - cap * squashed)[:, 0] * learned).sum()
    own = (1 - squashed * squashed) * (learned[:, None] * scale)
    return loss, gradient.scatter_add_(1, places, -own.to(gradient.dtype))


class HeadLoss(torch.autograd.Function):
    """Head and cross-entropy in slices; the gradient is computed on the way forward, so no logits are kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, scale: float, cap: float, softmax_gradient: Any
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head, dtype=torch.float32)
        for start in range(0, len(targets), LOGIT_ROWS):
            rows = slice(start, start + LOGIT_ROWS)
            loss, grad_raw = cross_entropy(hidden[rows] @ head.mT, targets[rows], scale, cap, softmax_gradient)
            total += loss
            torch.mm(grad_raw, head, out=grad_hidden[rows])
            grad_head += grad_raw.mT @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_head.to(head.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad, grad_head * grad, None, None, None, None
