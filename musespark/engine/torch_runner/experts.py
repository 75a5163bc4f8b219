"""The experts of a sparse layer, all rows at once: sorted by expert, one grouped product, sorted back.

torch has one kernel for all experts (`grouped_mm`), whose group sizes stay on the device; it wants rows of multiples of
16 bytes. For other widths each expert is a product of its own (`grouped_linear`), whose sizes come to the host.
Both expert classes of `model/network` are replaced, and Llama 4's weights are (E, out, in) here, too.

Letters: N rows, E experts, k experts per row, F expert width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musespark.model.network.grouped import grouped_linear
from musespark.model.network.llama4 import Llama4Experts
from musespark.model.network.moe import Experts, Routing

ALIGNMENT_BYTES = 16


class GroupedExperts(nn.Module):
    """In the place of `Experts` or `Llama4Experts`; made on the meta device, weights come later."""

    def __init__(self, experts: Experts | Llama4Experts, dtype: torch.dtype) -> None:
        super().__init__()
        is_llama4 = isinstance(experts, Llama4Experts)
        for name in ("gate_up_proj", "down_proj"):
            shape = getattr(experts, name).shape
            shape = (shape[0], shape[2], shape[1]) if is_llama4 else shape
            setattr(self, name, nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False))
        self.gate_up_proj: nn.Parameter  # (E, 2F, in)
        self.down_proj: nn.Parameter  # (E, out, F)
        if isinstance(experts, Experts):
            self.post_expert_norm = experts.post_expert_norm
        self.scales_input = is_llama4  # the routing weight: before the experts there, after their norm here

    @property
    def has_one_kernel(self) -> bool:
        """Whether one call computes all experts. A GPU has such a kernel for bfloat16 only."""
        weight = self.down_proj
        if weight.device.type == "cuda" and weight.dtype != torch.bfloat16:
            return False
        widths = (self.gate_up_proj.shape[2], weight.shape[2])
        return all(width * weight.element_size() % ALIGNMENT_BYTES == 0 for width in widths)

    def forward(self, hidden: Tensor, routing: Routing) -> Tensor:
        """hidden (N, in) -> (N, out) float32."""
        num_rows, k = routing.indices.shape
        dtype = self.down_proj.dtype
        order = torch.argsort(routing.indices.flatten(), stable=True)  # (N·k,) pairs, grouped by expert
        rows = order // k
        counts = routing.counts()
        if self.scales_input:
            pairs = (hidden[rows].float() * routing.weights.flatten()[order, None]).to(dtype)
        else:
            pairs = hidden.to(dtype)[rows]
        gate, up = self._product(pairs, self.gate_up_proj, counts).chunk(2, dim=-1)
        out = self._product(F.silu(gate) * up, self.down_proj, counts)
        out = out.float() if self.scales_input else self.post_expert_norm(out)
        out = out[torch.argsort(order)].view(num_rows, k, -1)
        return out.sum(1) if self.scales_input else (out * routing.weights[..., None]).sum(1)

    def _product(self, pairs: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        """Rows sorted by expert, each times the transposed matrix of its own."""
        if not self.has_one_kernel:
            return grouped_linear(pairs, weight, counts)
        ends = counts.cumsum(0).to(torch.int32)
        return F.grouped_mm(pairs, weight.transpose(1, 2), offs=ends)


def group_experts(network: nn.Module, dtype: torch.dtype) -> list[GroupedExperts]:
    """Replace all experts in a network on the meta device."""
    replaced = []
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, Experts | Llama4Experts):
                with torch.device("meta"):
                    grouped = GroupedExperts(child, dtype)
                setattr(module, name, grouped)
                replaced.append(grouped)
    return replaced
