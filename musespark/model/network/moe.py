"""The latent mixture of experts: a float32 sigmoid router, experts in a narrower space, one norm per expert output.

Two ways to run the experts stand side by side. `experts_looped` is the definition, read in a minute.
`experts_grouped` sorts the (token, expert) pairs by expert, so that each expert is one matrix product. A test holds
them equal, gradients included. Source: transformers 5.23 `muse_spark`.

Letters: N tokens, E experts, k experts per token, m latent width, F expert width, D hidden width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musespark.model.config import TextConfig
from musespark.model.network.grouped import grouped_linear, permute_rows
from musespark.model.network.layers import CenteredRMSNorm, InputScaledRMSNorm, Linear, compute_dtype


class Routing(NamedTuple):
    """What the router of one layer decided; trainers read it to balance the load."""

    logits: Tensor  # (N, E) float32, before the sigmoid
    indices: Tensor  # (N, k) int64, the chosen experts, in no particular order
    weights: Tensor  # (N, k) float32, rows summing to routed_scaling_factor

    def counts(self) -> Tensor:
        """(E,) int64: how many (token, expert) pairs each expert got."""
        one_hot = torch.zeros_like(self.logits, dtype=torch.int64)
        return one_hot.scatter_(1, self.indices, 1).sum(0)


class Router(nn.Module):
    """Sigmoid scores; the correction bias takes part in the choice and never in the weights."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.routed_scaling_factor = config.routed_scaling_factor
        self.output_multiplier = config.output_multiplier
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.num_local_experts))
        self.e_score_correction_bias: Tensor

    def forward(self, hidden: Tensor) -> Routing:
        """hidden (N, D), any float type."""
        with torch.autocast(hidden.device.type, enabled=False):  # close scores decide which experts run: no bf16 here
            logits = F.linear(hidden.float(), self.weight.float()) * self.output_multiplier
        scores = torch.sigmoid(logits)
        preference = scores.detach() + self.e_score_correction_bias.float()
        indices = torch.topk(preference, self.num_experts_per_tok, dim=-1, sorted=False).indices
        weights = scores.gather(1, indices)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-15) * self.routed_scaling_factor
        return Routing(logits, indices, weights)


class Experts(nn.Module):
    """All experts of a layer in two tensors, as in the published files; rows of `gate_up_proj` are gate, then up."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        num_experts, latent, width = config.num_local_experts, config.moe_hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * width, latent))  # (E, 2F, m)
        self.down_proj = nn.Parameter(torch.empty(num_experts, latent, width))  # (E, m, F)
        self.post_expert_norm = InputScaledRMSNorm(latent, config.post_norm_eps)

    def forward(self, latent: Tensor, routing: Routing) -> Tensor:
        return experts_grouped(self, latent, routing)


def experts_looped(experts: Experts, latent: Tensor, routing: Routing) -> Tensor:
    """The definition: every expert in turn takes its tokens. latent (N, m) -> (N, m) float32."""
    dtype = compute_dtype(experts.down_proj)
    out = torch.zeros_like(latent, dtype=torch.float32)
    for e in range(experts.down_proj.shape[0]):
        rows, slots = torch.where(routing.indices == e)
        gate, up = F.linear(latent[rows].to(dtype), experts.gate_up_proj[e]).chunk(2, dim=-1)
        expert_out = F.linear(F.silu(gate) * up, experts.down_proj[e])
        # The norm comes before the routing weight: it is not linear, so the order matters.
        expert_out = experts.post_expert_norm(expert_out) * routing.weights[rows, slots, None]
        out = out.index_add(0, rows, expert_out)
    return out


def experts_grouped(experts: Experts, latent: Tensor, routing: Routing) -> Tensor:
    """The same, sorted by expert. latent (N, m) -> (N, m) float32, summed in the order of `routing.indices`."""
    n, k = routing.indices.shape
    dtype = compute_dtype(experts.down_proj)
    order = torch.argsort(routing.indices.flatten(), stable=True)  # (N·k,) pairs, grouped by expert
    place = torch.argsort(order)  # where each pair went
    counts = routing.counts()
    pairs = latent.to(dtype).unsqueeze(1).expand(n, k, -1).reshape(n * k, -1)
    pairs = permute_rows(pairs, order, place)  # (N·k, m)
    gate, up = grouped_linear(pairs, experts.gate_up_proj.to(dtype), counts).chunk(2, dim=-1)
    expert_out = grouped_linear(F.silu(gate) * up, experts.down_proj.to(dtype), counts)
    expert_out = permute_rows(experts.post_expert_norm(expert_out), place, order)
    return (expert_out.view(n, k, -1) * routing.weights.unsqueeze(-1)).sum(1)


class MixtureOfExperts(nn.Module):
    """Router on the full width, experts on the latent width."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.pre_expert_proj = Linear(config.hidden_size, config.moe_hidden_size, bias=False)
        self.pre_expert_norm = CenteredRMSNorm(config.moe_hidden_size, config.rms_norm_eps)
        self.experts = Experts(config)
        self.post_expert_proj = Linear(config.moe_hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Routing]:
        """hidden (B, T, D) -> (B, T, D) and the routing of its B·T tokens."""
        rows = hidden.flatten(0, 1)  # (N, D)
        routing = self.gate(rows)
        latent = self.pre_expert_norm(self.pre_expert_proj(rows))  # (N, m)
        latent = self.experts(latent, routing)
        return self.post_expert_proj(latent).view(hidden.shape), routing


class DenseMLP(nn.Module):
    """SwiGLU without a router; `mlp_layer_types` may put it into any layer."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden)), None
