"""TorchRunners over small networks of the torch reference."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musespark.engine.torch_runner import TorchRunner
from musespark.model.checkpoint import open_checkpoint, save_checkpoint
from musespark.model.config import ModelType
from musespark.model.network import Network
from tests.model.network.families import family_network

FAMILIES: tuple[ModelType, ...] = ("muse_spark", "muse_glimmer", "llama4")
# Rows of multiples of 16 bytes: what the kernel for all experts at once takes, as every published model does.
ALIGNED: dict[ModelType, dict[str, Any]] = {
    "muse_spark": {"moe_hidden_size": 32, "moe_intermediate_size": 16, "num_local_experts": 6},
    "muse_glimmer": {},
    "llama4": {"hidden_size": 32, "intermediate_size": 16, "num_local_experts": 6, "interleave_moe_layer_step": 1},
}


def deep_network(family: ModelType, seed: int, layers: int, **text: Any) -> Network:
    if family == "muse_spark":
        text["mlp_layer_types"] = ["sparse"] * layers
    return family_network(family, seed, num_hidden_layers=layers, **text)


def open_torch(folder: Path, **options: Any) -> TorchRunner:
    defaults = {"device": "cpu", "dtype": torch.float32, "num_full_pages": 16, "num_sliding_pages": 16}
    return TorchRunner(open_checkpoint(folder), **(defaults | options))


def torch_runner(network: Network, **options: Any) -> TorchRunner:
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "checkpoint", network.config, network.state_dict())
        return open_torch(Path(folder) / "checkpoint", **options)


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    difference = np.abs(got - expected)
    assert np.quantile(difference, 0.95) < 1e-5
    assert difference.max() < 3e-4
