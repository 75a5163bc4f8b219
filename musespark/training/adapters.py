"""Low-rank adapters (LoRA, arXiv 2106.09685): of each matrix W only B A is learned, and added: W + (2 / sqrt(r)) B A.

A starts random and B at zero, so training starts from the very model. The scale keeps the step alike at all ranks
(rsLoRA, arXiv 2312.03732). Experts get one pair each. The router, norms, embeddings, the head and the vision tower stay
as they are. At the end the product is added to the weights, so what is saved is an ordinary checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEFT_ALONE = ("embed_tokens", "lm_head", "mlp.gate.", "vision_")
SCALE = 2.0


class Adapters(nn.Module):
    """One pair (A, B) for every hidden matrix of a network's text half."""

    def __init__(self, network: nn.Module, rank: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self._scale = SCALE / rank**0.5
        self._names: dict[str, str] = {}  # a parameter's name may hold no dot
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        for name, p in network.named_parameters():
            if p.ndim < 2 or any(part in name for part in LEFT_ALONE):
                continue
            *experts, rows, columns = p.shape
            key = name.replace(".", "/")
            a = torch.randn(*experts, rank, columns, generator=generator) / columns**0.5
            self.a[key], self.b[key] = nn.Parameter(a), nn.Parameter(torch.zeros(*experts, rows, rank))
            self._names[name] = key

    def apply_to(self, name: str, weight: Tensor) -> Tensor:
        """The weight with its adapter's product, where it has one; gradients reach A and B only."""
        key = self._names.get(name)
        if key is None:
            return weight
        return weight.detach() + self._scale * (self.b[key] @ self.a[key])

    @torch.no_grad()
    def merge_into(self, network: nn.Module) -> None:
        for name, p in network.named_parameters():
            p.copy_(self.apply_to(name, p))
