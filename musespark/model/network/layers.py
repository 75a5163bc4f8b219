"""The small parts that the text stack, the experts and the vision tower share: norms, the linear map, rotary embedding.

One rule for number types runs through the whole network: norms, router, residual stream and soft cap are computed in
float32; a matrix product runs in the type of its weight, or in the autocast type where one is set. So the same code is
the float32 oracle, a bf16 model, and a mixed-precision training step. Formulas: transformers 5.23 `muse_spark`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musespark.model.config import RopeScaling


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The type in which a product with `weight` runs: the autocast type where one is set, else the weight's own."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


class Linear(nn.Linear):
    """A linear map that takes any float type and answers in the compute type of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(compute_dtype(self.weight)), self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """LayerNorm in float32, whatever the type of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the last axis, in float32: the norm without a weight."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


class RMSNorm(nn.Module):
    """A norm whose weight is used as it is: every norm of Llama 4, and of the Muse families the final one only."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps) * self.weight.float()


class CenteredRMSNorm(nn.Module):
    """Norm, then times (1 + weight): a stored weight of zero means no scaling."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps) * (1.0 + self.weight.float())


class InputScaledRMSNorm(nn.Module):
    """Times (1 + weight), then norm: the weight turns the direction and leaves the length at one per channel."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x.float() * (1.0 + self.weight.float()), self.eps)


class ResidualGate(nn.Module):
    """alpha · residual + beta · branch, per channel; alpha² + beta² = 1 keeps the variance of the stream.

    beta = sigmoid(gate / temperature), alpha = sqrt(1 - beta²) written as sqrt(sigmoid(-w)·(1 + beta)), which keeps its
    digits near beta = 1; the clamp keeps alpha's gradient finite there.
    """

    SMALLEST_ALPHA_SQUARED = 1e-3

    def __init__(self, size: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.gate = nn.Parameter(torch.zeros(size))

    def forward(self, residual: Tensor, branch: Tensor) -> Tensor:
        w = self.gate.float() / self.temperature
        beta = torch.sigmoid(w)
        alpha = torch.sqrt(torch.clamp(torch.sigmoid(-w) * (1.0 + beta), min=self.SMALLEST_ALPHA_SQUARED))
        return alpha * residual + beta * branch


def rotary_frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Angle per position of each pair: theta^(-2i/head_dim), (head_dim/2,) float32, from fastest to slowest."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)


def scale_frequencies(frequencies: Tensor, scaling: RopeScaling | None) -> Tensor:
    """Llama 3 scaling: slow frequencies are divided by `factor`, fast ones stay, those between are mixed."""
    if scaling is None:
        return frequencies
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)  # within the original length
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if low == high:  # Llama 4 Scout: a step, where the mix would divide by zero
        return torch.where(turns < low, frequencies / scaling.factor, frequencies)
    fast = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - fast) * frequencies / scaling.factor + fast * frequencies


def rotate_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[2i], x[2i + 1]) of the last axis by its angle, as Llama 4 stores q and k; cos, sin (…, d/2)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + d/2]) of the last axis by its angle; cos and sin (…, d/2) broadcast against x.

    The halves are the pairs, as Hugging Face stores q and k of the Muse families; native Meta weights pair neighbours.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
