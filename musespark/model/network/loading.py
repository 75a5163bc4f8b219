"""From a configuration or a checkpoint folder to its network, and the naive loop that the engine is held against."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from musespark.model.config import ModelConfig, ModelType
from musespark.model.network.base import Network
from musespark.model.network.glimmer import MuseGlimmer
from musespark.model.network.llama4 import Llama4
from musespark.model.network.model import MuseSpark

if TYPE_CHECKING:
    from musespark.chat.images import PatchedImage
    from musespark.model.checkpoint import Checkpoint

NETWORKS: dict[ModelType, Callable[[ModelConfig], Network]] = {
    "muse_spark": MuseSpark,
    "muse_glimmer": MuseGlimmer,
    "llama4": Llama4,
}


def build_network(config: ModelConfig) -> Network:
    """The network of the family of `config`, with fresh weights (or on the meta device, without any)."""
    return NETWORKS[config.model_type](config)


def load_network(folder: Path) -> Network:
    """The network of a checkpoint folder in float32, quantised weights expanded. Raises CheckpointError."""
    from musespark.model.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    with torch.device("meta"):
        network = build_network(checkpoint.config)
    tensors = {name: read_tensor(checkpoint, name) for name in network.state_dict()}
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval()


def read_tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A logical tensor in float32 and in the layout of the network, in memory of its own."""
    from musespark.model.tensors import is_transposed

    array = checkpoint.weight(name).float32()
    if is_transposed(name):
        array = array.swapaxes(1, 2)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@torch.no_grad()
def generate_greedy(
    network: Network,
    token_ids: Sequence[int],
    images: Sequence[PatchedImage] = (),
    *,
    max_tokens: int,
    stop_ids: Collection[int] = (),
) -> list[int]:
    """The naive loop: the whole sequence again for every token, no cache. Returns the new tokens, with the stop id."""
    features = network.encode_images(images) if images else []
    sequence, num_prompt = list(token_ids), len(token_ids)
    for _ in range(max_tokens):
        row = torch.tensor([sequence], device=network.head.weight.device)
        hidden, _ = network.hidden_states(row, images=features)
        sequence.append(int(network.logits(hidden[0, -1]).argmax()))
        if sequence[-1] in stop_ids:
            break
    return sequence[num_prompt:]
