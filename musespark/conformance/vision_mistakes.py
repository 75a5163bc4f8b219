"""Mistakes in the image towers: the one for grids of the Muse families, and Llama 4's for tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from musespark.conformance.mistakes import Mistake, Mistakes, both, editing, on_images, overriding, put, with_config
from musespark.model.config import ModelConfig, VisionLayerType
from musespark.model.network import Network
from musespark.model.network.layers import rotary_frequencies, rotate
from musespark.model.network.model import MuseSpark
from musespark.model.network.tiles import TileAttention, TileTower, pixel_shuffle
from musespark.model.network.vision import (
    Grid,
    PatchEmbedder,
    VisionAdapter,
    VisionAttention,
    VisionMLP,
    VisionTower,
    resample_table,
)

Angles = tuple[Tensor, Tensor]
Kinds = tuple[VisionLayerType, ...]


def _tanh_mlp(self: VisionMLP, hidden: Tensor) -> Tensor:
    return self.fc2(F.gelu(self.fc1(hidden), approximate="tanh"))


def _tanh_adapter(self: VisionAdapter, x: Tensor) -> Tensor:
    return F.gelu(self.fc2(F.gelu(self.fc1(x), approximate="tanh")), approximate="tanh")


def _rows_first(tower: type[VisionTower] | type[TileTower]) -> Callable[..., Angles]:
    def rotary(self: Any, *args: Any) -> Angles:
        cos, sin = tower.rotary(self, *args)
        half = cos.shape[-1] // 2
        return cos.roll(half, -1), sin.roll(half, -1)

    return rotary


def _shared(tower: type[VisionTower] | type[TileTower]) -> Mistakes:
    return {
        "tanh-gelu": Mistake(
            "approximates GELU by tanh in tower and adapter",
            both(overriding(VisionMLP, "forward", _tanh_mlp), overriding(VisionAdapter, "forward", _tanh_adapter)),
        ),
        "rows-before-columns": Mistake(
            "turns the first half of a vision head by the row and the second by the column",
            overriding(tower, "rotary", _rows_first(tower)),
        ),
    }


# The tower for grids.


def _regroup(first: int) -> Callable[[Any], None]:
    """The adapter reads merged cells in the other order: columns of its matrix, seen as (first, rest), exchanged."""

    def edit(adapter: VisionAdapter) -> None:
        weight = adapter.fc1.weight
        groups = first or weight.shape[1] // 4
        weight.copy_(weight.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1).clone())

    return edit


def _one_frame(embedder: PatchEmbedder) -> None:
    _, second = embedder.patch_embedding.weight.chunk(2, dim=1)
    second.zero_()


def _clamped_embed(self: PatchEmbedder, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
    table = self.position_embedding_table.weight
    right = torch.cat([resample_table(table, grid, self.order) for grid in grids])
    wrong = torch.cat([_clamped(table, grid, self.order) for grid in grids])
    return PatchEmbedder.forward(self, patches, grids) - right + wrong


def _clamped(table: Tensor, grid: Grid, order: Literal["xy", "ij"]) -> Tensor:
    side = int(table.shape[0] ** 0.5)
    weights = []
    for n in grid if order == "ij" else grid[::-1]:
        sample = ((torch.arange(n) + 0.5) * side / n - 0.5).clamp(0, side - 1)
        weights.append((1.0 - (sample[:, None] - torch.arange(side)).abs()).clamp(min=0.0))
    return torch.einsum("ir,jc,rcd->ijd", *weights, table.view(side, side, -1)).flatten(0, 1)


def _layer_types(change: Callable[[Kinds], Kinds]) -> Callable[[Network], Network]:
    def changes(config: ModelConfig) -> dict[str, Any]:
        assert config.vision is not None
        return {"vision": replace(config.vision, layer_types=change(config.vision.layer_types))}

    return with_config(changes)


def _all_full(kinds: Kinds) -> Kinds:
    full: VisionLayerType = "full_attention"
    return (full,) * len(kinds)


def _last_windowed(kinds: Kinds) -> Kinds:
    last: VisionLayerType = "window_attention"
    return (*kinds[:-1], last)


def _all_together(self: VisionAttention, hidden: Tensor, rotary: Angles, sizes: list[int]) -> Tensor:
    return VisionAttention.forward(self, hidden, rotary, [len(hidden)])


def _unnormed_features(self: MuseSpark, images: Sequence[Any]) -> list[Tensor]:
    patches = torch.cat([torch.as_tensor(image.patches) for image in images])
    merged = self.model.vision_tower(patches, [image.grid for image in images])
    features = self.model.vision_projection(self.model.vision_adapter(merged))
    return list(features.split([image.num_tokens for image in images]))


def table_order(order: str, says: str) -> Mistake:
    return Mistake(says, editing(PatchEmbedder, put(order=order)))


GRID_TOWER: Mistakes = {
    **_shared(VisionTower),
    "one-frame-instead-of-two": Mistake(
        "embeds a still image as one frame; it is two equal ones", editing(PatchEmbedder, _one_frame)
    ),
    "cells-patch-major": Mistake(
        "orders a merged cell as (dy, dx, channel) instead of (channel, dy, dx)", editing(VisionAdapter, _regroup(4))
    ),
    "no-perception-norm": Mistake(
        "gives image features to the text stack without their norm",
        overriding(MuseSpark, "encode_images", _unnormed_features),
    ),
    "position-table-clamped": Mistake(
        "repeats the border of the position table beyond it, where it counts as zero",
        overriding(PatchEmbedder, "forward", _clamped_embed),
    ),
    "windows-ignored": Mistake(
        "lets every layer of the tower see the whole image",
        _layer_types(_all_full),
    ),
    "last-vision-layer-windowed": Mistake(
        "gives the last layer of the tower windows, because its number is not a multiple of four",
        _layer_types(_last_windowed),
    ),
    "images-see-each-other": Mistake(
        "attends across the images of a prompt in the tower", overriding(VisionAttention, "forward", _all_together)
    ),
}

# The tower for tiles.


def _class_first(self: TileTower, tiles: Tensor) -> Tensor:
    hidden = self.patch_embedding.linear(tiles)
    hidden = torch.cat((self.class_embedding.expand(len(tiles), 1, -1), hidden), dim=1) + self.positional_embedding_vlm
    rotary = self.rotary(tiles.device)
    hidden = self.layernorm_pre(hidden)
    for layer in self.model.layers:
        hidden = layer(hidden, tuple(angles.roll(1, 0) for angles in rotary))
    hidden = self.layernorm_post(hidden)[:, 1:]
    return self.vision_adapter.mlp(pixel_shuffle(hidden, self.config.side, self.config.merge_size))


def _counted_from_zero(self: TileTower, device: torch.device) -> Angles:
    """The class token stays at angle 0. In the other tower, which has none, only differences of angles count."""
    cos, sin = TileTower.rotary(self, device)
    half = self.config.hidden_size // self.config.num_attention_heads // 2
    back = rotary_frequencies(half, self.config.rope_theta, device).repeat(2).expand_as(cos).clone()
    back[-1] = 0.0
    return cos * back.cos() + sin * back.sin(), sin * back.cos() - cos * back.sin()


def _tile_halves(self: TileAttention, hidden: Tensor, rotary: Angles) -> Tensor:
    q, k, v = (
        proj(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        for proj in (self.q_proj, self.k_proj, self.v_proj)
    )
    q, k = rotate(q, *rotary), rotate(k, *rotary)
    return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _tiles_together(self: TileAttention, hidden: Tensor, rotary: Angles) -> Tensor:
    cos, sin = (angles.repeat(len(hidden), 1) for angles in rotary)
    return TileAttention.forward(self, hidden.flatten(0, 1)[None], (cos, sin)).view(hidden.shape)


TILE_TOWER: Mistakes = {
    **_shared(TileTower),
    "class-token-first": Mistake(
        "puts the class token before the patches instead of behind", overriding(TileTower, "forward", _class_first)
    ),
    "cells-channel-major": Mistake(
        "orders a merged cell as (channel, dy, dx) instead of (dy, dx, channel)", editing(VisionAdapter, _regroup(0))
    ),
    "patches-counted-from-zero": Mistake(
        "counts rows and columns of patches from 0, which is the class token's place",
        overriding(TileTower, "rotary", _counted_from_zero),
    ),
    "vision-rope-of-halves": Mistake(
        "turns halves instead of neighbours in the tower", overriding(TileAttention, "forward", _tile_halves)
    ),
    "tiles-see-each-other": Mistake(
        "attends across tiles in the tower", overriding(TileAttention, "forward", _tiles_together)
    ),
    "global-tile-first": Mistake(
        "puts the features of the global tile before those of the others",
        on_images(lambda tiles: [tiles[-1], *tiles[:-1]]),
    ),
}
