"""The weights of a checkpoint on the device, from the reader that the native runner uses, too.

Integers are expanded while they are loaded: this runner computes in floats only. Matrices and embeddings are in its
dtype; vectors (norms, gates, biases of the choice) and the router, which decides on small differences, in float32.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from musespark.model.checkpoint import Checkpoint
from musespark.model.config import ModelConfig
from musespark.model.network import Network, build_network
from musespark.model.tensors import Shape, expected_tensors, is_float32
from musespark.model.weight_reader import Progress, StoredWeight, WeightReader

TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dtype_of(name: str, shape: Shape, dtype: torch.dtype) -> torch.dtype:
    """The type in which a tensor is kept."""
    is_vector = len(shape) == 1 and not name.endswith(".bias")  # a bias is added within its product
    return torch.float32 if is_vector or is_float32(name) or name.endswith(".router.weight") else dtype


def weight_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    return sum(
        math.prod(shape) * dtype_of(name, shape, dtype).itemsize for name, shape in expected_tensors(config).items()
    )


def load_weights(
    network: Network, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, progress: Progress | None
) -> None:
    """Give a network on the meta device, with grouped experts, its weights. Raises CheckpointError."""
    reader = WeightReader(checkpoint, progress)
    tensors = {}
    for name in checkpoint.names():
        kept = dtype_of(name, checkpoint.shape(name), dtype)
        tensors[name] = expand(reader.read(name), checkpoint.shape(name)[-1], kept, device)
    reader.finish()
    network.load_state_dict(tensors, strict=True, assign=True)
    network.requires_grad_(False)


def random_network(config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Network:
    """A network with grouped experts and random weights made on the device, for measuring: no file, no host memory."""
    from musespark.engine.torch_runner.experts import group_experts

    with torch.device("meta"):
        network = build_network(config).eval()
        group_experts(network, dtype)
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for name, tensor in network.state_dict().items():
        kept = dtype_of(name, tuple(tensor.shape), dtype)
        if tensor.dim() == 1:
            tensors[name] = torch.full(tensor.shape, float(name.endswith("norm.weight")), dtype=kept, device=device)
            continue
        values = torch.empty(tensor.shape, dtype=kept, device=device)
        tensors[name] = values.normal_(std=tensor.shape[-1] ** -0.5, generator=generator)
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.requires_grad_(False)


def expand(weight: StoredWeight, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A stored weight in `dtype`; `width` is the number of inputs, to which packed rows may be filled up."""
    data = torch.from_numpy(weight.data.view(np.int16) if weight.data.dtype == np.uint16 else weight.data)
    if weight.scales is None:
        return data.view(TORCH_DTYPES[weight.kind]).to(device).to(dtype)
    scales = torch.from_numpy(weight.scales.view(np.int16) if weight.scales.dtype == np.uint16 else weight.scales)
    if scales.dtype == torch.int16:
        scales = scales.view(torch.bfloat16)
    scales = scales.to(device).float()
    if data.dim() == 2:
        return _dequantised(data.to(device), scales, weight, width, dtype)
    # One expert at a time: the whole in float32 would take twice the room of the result.
    parts = [_dequantised(*pair, weight, width, dtype) for pair in zip(data.to(device), scales, strict=True)]
    return torch.stack(parts)


def _dequantised(data: Tensor, scales: Tensor, weight: StoredWeight, width: int, dtype: torch.dtype) -> Tensor:
    """(out, in) of a matrix of integers; scales (out, groups) float32."""
    if weight.kind == "I4":
        data = torch.stack((data & 15, data >> 4), dim=-1).flatten(-2)[:, :width].to(torch.int8) - 8
    return (data.float() * scales.repeat_interleave(weight.group_size, dim=-1)[:, :width]).to(dtype)
