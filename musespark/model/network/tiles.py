"""The image tower of Llama 4: square tiles of one size, each by itself -> one feature per merged cell of patches.

A class token comes after the patches and leaves with the last layer. Source: transformers 5.23 `llama4`.

Letters: n tiles, P patches of a tile, C tower width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musespark.model.config import ModelConfig, TileVisionConfig
from musespark.model.network.layers import LayerNorm, Linear, rotary_frequencies, rotate_neighbours
from musespark.model.network.vision import VisionAdapter, VisionMLP


def pixel_shuffle(hidden: Tensor, side: int, merge_size: int) -> Tensor:
    """hidden (n, side², C) -> (n, cells, merge² · C), entry (dy · merge + dx) · C + c."""
    cells = hidden.unflatten(1, (side // merge_size, merge_size, side // merge_size, merge_size))
    return cells.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


class TileAttention(nn.Module):
    def __init__(self, config: TileVisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (Linear(width, width) for _ in range(4))

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """hidden (n, P + 1, C); rotary: cos and sin (P + 1, head_dim/2)."""
        q, k, v = (
            proj(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (n, H, P + 1, head_dim)
        q, k = (rotate_neighbours(x.float(), *rotary).to(v.dtype) for x in (q, k))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TileLayer(nn.Module):
    def __init__(self, config: TileVisionConfig) -> None:
        super().__init__()
        self.self_attn = TileAttention(config)
        self.mlp = VisionMLP(config)
        self.input_layernorm = LayerNorm(config.hidden_size, eps=1e-5)  # fixed in the reference
        self.post_attention_layernorm = LayerNorm(config.hidden_size, eps=1e-5)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotary)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class PatchEmbedding(nn.Module):
    def __init__(self, config: TileVisionConfig) -> None:
        super().__init__()
        self.linear = Linear(3 * config.patch_size**2, config.hidden_size, bias=False)


class TileLayers(nn.Module):
    """Exists for the prefix `model.` of the layers."""

    def __init__(self, config: TileVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TileLayer(config) for _ in range(config.num_hidden_layers))


class ShuffleAdapter(nn.Module):
    """Exists for the prefix `vision_adapter.`."""

    def __init__(self, config: ModelConfig, merged_size: int) -> None:
        super().__init__()
        self.mlp = VisionAdapter(config, merged_size)


class TileTower(nn.Module):
    def __init__(self, config: ModelConfig, vision: TileVisionConfig) -> None:
        super().__init__()
        self.config = vision
        width = vision.hidden_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding_vlm = nn.Parameter(torch.empty(vision.side**2 + 1, width))
        self.patch_embedding = PatchEmbedding(vision)
        self.layernorm_pre = LayerNorm(width, eps=1e-5)
        self.layernorm_post = LayerNorm(width, eps=1e-5)
        self.model = TileLayers(vision)
        self.vision_adapter = ShuffleAdapter(config, vision.intermediate_size)

    def forward(self, tiles: Tensor) -> Tensor:
        """tiles (n, P, 588), patches in raster order -> (n, cells, projector_hidden_size)."""
        assert tiles.shape[1] == self.config.side**2, "every tile has the one size of this tower"
        hidden = self.patch_embedding.linear(tiles).float()
        class_token = self.class_embedding.float().expand(len(tiles), 1, -1)
        hidden = torch.cat((hidden, class_token), dim=1) + self.positional_embedding_vlm.float()
        rotary = self.rotary(tiles.device)
        hidden = self.layernorm_pre(hidden)
        for layer in self.model.layers:
            hidden = layer(hidden, rotary)
        hidden = self.layernorm_post(hidden)[:, :-1]
        return self.vision_adapter.mlp(pixel_shuffle(hidden, self.config.side, self.config.merge_size))

    def rotary(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin (P + 1, head_dim/2): the column turns the first pairs, the row the others, the class nothing."""
        half = self.config.hidden_size // self.config.num_attention_heads // 2
        frequencies = rotary_frequencies(half, self.config.rope_theta, device)
        place = torch.arange(1, self.config.side + 1, device=device)  # from 1: 0 is the class token's
        row, column = place.repeat_interleave(self.config.side), place.repeat(self.config.side)
        angles = torch.cat((column[:, None] * frequencies, row[:, None] * frequencies), dim=1)
        angles = F.pad(angles, (0, 0, 0, 1))
        return angles.cos(), angles.sin()
