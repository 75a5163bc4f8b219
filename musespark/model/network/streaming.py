"""A checkpoint run layer after layer, with one layer in memory at a time: for models larger than the machine.

What is asked of a whole text at once, and not in a hurry: calibrating a quantisation, comparing two checkpoints.
Everything is float32, as in the reference. Letters: B windows of text, T tokens of a window, D hidden width.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from musespark.model.checkpoint import Checkpoint, as_checkpoint
from musespark.model.network.loading import build_network, read_tensor
from musespark.model.network.text import Layer
from musespark.model.weights import Plain

AnyModule = TypeVar("AnyModule", bound=nn.Module)

TOKENS_AT_ONCE = 4096  # of one call of a layer: its products are large, its masks and buffers still small


class StreamedNetwork:
    """An open checkpoint and its network without weights, but for those that are `keep`t.

    Other weights live as long as what `layer` or `load` returned.
    """

    def __init__(self, source: Checkpoint | Path) -> None:
        """Raises CheckpointError."""
        self.checkpoint = as_checkpoint(source)
        self.config = self.checkpoint.config
        with torch.device("meta"):
            self.network = build_network(self.config).eval()
        self._names = {module: name for name, module in self.network.named_modules()}

    @property
    def num_layers(self) -> int:
        return self.config.text.num_hidden_layers

    def name(self, module: nn.Module) -> str:
        """Its name in the checkpoint."""
        return self._names[module]

    def load(self, module: AnyModule) -> AnyModule:
        """A copy of a module of the network with its weights."""
        loaded = copy.deepcopy(module)
        prefix = self.name(module)
        tensors = {name: read_tensor(self.checkpoint, f"{prefix}.{name}") for name in module.state_dict()}
        loaded.load_state_dict(tensors, strict=True, assign=True)
        return loaded

    def keep(self, module: nn.Module) -> None:
        """Give a module of the network its weights for as long as the network lives."""
        module.load_state_dict(self.load(module).state_dict(), assign=True)

    def layer(self, index: int) -> Layer:
        layer = self.network.text_model.layers[index]
        assert isinstance(layer, Layer)
        return self.load(layer)

    @torch.no_grad()
    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids (B, T) int64 -> the stream before the first layer (B, T, D). Reads only the rows of these ids."""
        text = self.network.text_model
        weight = self.checkpoint.weight(f"{self.name(text.embed_tokens)}.weight")
        assert isinstance(weight, Plain), "embeddings are never quantised"
        used, places = np.unique(token_ids.numpy(), return_inverse=True)
        rows = torch.from_numpy(weight.with_arrays(weight.raw.data[used]).float32().copy())
        text.embed_tokens, whole = nn.Embedding.from_pretrained(rows), text.embed_tokens
        hidden = text.embed(torch.from_numpy(places.reshape(token_ids.shape)))
        text.embed_tokens = whole
        return hidden

    @torch.no_grad()
    def run(self, layer: Layer, index: int, hidden: Tensor) -> Tensor:
        """The stream (B, T, D) after the layer `index`, given with its weights."""
        num_tokens = hidden.shape[1]
        rotary, plans = self.network.text_model.prepare(num_tokens, torch.arange(num_tokens)[None])
        plan = plans[self.config.text.layer_types[index]]
        some = max(1, TOKENS_AT_ONCE // num_tokens)
        return torch.cat([layer(rows, rotary, plan, None)[0] for rows in hidden.split(some)])
