"""Muon for matrices, AdamW for everything else.

Muon replaces the momentum of a matrix by the nearest matrix with orthonormal rows or columns, found by Newton-Schulz
iterations; matrices of one shape, the experts of all layers among them, go through the iterations as one batch.
Source: K. Jordan, "Muon", with the update scaled to the RMS of AdamW as in Moonlight (0.2 * sqrt(larger side)), so that
the same rate fits matrices of every shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (
    3.4445,
    -4.7750,
    2.0315,
)  # the quintic of the Muon write-up: steep at 0, all singular values to about 1
NOT_A_HIDDEN_MATRIX = (
    "embed_tokens",
    "lm_head",
    "mlp.gate.",
    "position",
)  # one-hot inputs, the head, the router


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The orthogonal factor of each matrix of (B, R, C), to about 0.3 in every singular value; computed in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True).bfloat16() + 1e-7)
    x = x.contiguous()
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised. Takes tensors of two dimensions, or more: then the last two are the matrix."""

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        steps: int = 5,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[(p.shape[-2], p.shape[-1])].append(p)
            for (rows, columns), params in by_shape.items():
                updates = orthogonalise(
                    torch.cat([self._momentum(p, group["momentum"]) for p in params]), group["steps"]
                )
                scale = group["lr"] * 0.2 * max(rows, columns) ** 0.5
                start = 0
                for p in params:
                    count = p.numel() // (rows * columns)
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(updates[start : start + count].view_as(p), alpha=-scale)
                    start += count

    def _momentum(self, p: nn.Parameter, momentum: float) -> Tensor:
        """The Nesterov look-ahead of one tensor, as (matrices, R, C)."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum"]
        buffer.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum).view(-1, p.shape[-2], p.shape[-1])


def build_optimizers(
    network: nn.Module,
    *,
    matrix_lr: float,
    embedding_lr: float,
    scalar_lr: float,
    router_lr: float,
    vision_lr_scale: float,
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices; AdamW for embedding and head, for the router, and for norms, gates and biases.

    The router has the smallest rate: its inputs share a direction, and Adam at 3e-3 sent every token to the same
    experts within 16 steps. The vision tower learns at `vision_lr_scale` of the other rates.
    """
    kinds: dict[tuple[str, bool], list[nn.Parameter]] = defaultdict(list)
    for name, p in network.named_parameters():
        kinds[_kind(name, p), "model.vision_" in name].append(p)
    rates = {"matrix": matrix_lr, "embedding": embedding_lr, "router": router_lr, "rest": scalar_lr}
    groups = {
        (kind, vision): {"params": params, "lr": rates[kind] * (vision_lr_scale if vision else 1.0)}
        for (kind, vision), params in sorted(kinds.items())
    }
    matrices = [g for (kind, _), g in groups.items() if kind == "matrix"]
    others = [g for (kind, _), g in groups.items() if kind != "matrix"]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=matrix_lr, weight_decay=weight_decay))
    if others:  # adapters are matrices only
        optimizers.append(torch.optim.AdamW(others, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]  # the schedule scales this
    return optimizers


def _kind(name: str, p: nn.Parameter) -> str:
    if p.ndim >= 2 and not any(part in name for part in NOT_A_HIDDEN_MATRIX):
        return "matrix"
    if "embed_tokens" in name or "lm_head" in name:
        return "embedding"
    return "router" if "mlp.gate." in name else "rest"
