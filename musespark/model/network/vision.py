"""The image tower: patches of any grid -> one feature per 2×2 patches, in the width of the text stack.

All images of a call are packed into one run of patches; only attention splits them. Source: transformers 5.23
`muse_spark`; the tower of `muse_glimmer` differs in `pos_emb_order` only. Still images only: both frames of a patch are
the same picture.

Letters: P patches, C tower width, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musespark.model.config import ModelConfig, TileVisionConfig, VisionConfig
from musespark.model.network.layers import LayerNorm, Linear, compute_dtype, rms_norm, rotary_frequencies, rotate

Grid = tuple[int, int]  # rows and columns of an image, in patches


def resample_table(table: Tensor, grid: Grid, order: Literal["xy", "ij"] = "xy") -> Tensor:
    """Position embeddings for a grid: the square table (side², C), sampled bilinearly -> (rows·columns, C) float32.

    Samples outside the table count as zero, so the border of grids beyond the table's side fades. In order "ij" patch
    n is given the sample of its own place. In order "xy", which is Muse Spark's, it is given the one at row n // rows,
    column n % rows of a columns × rows grid. For square grids that is its own place too; for others a scramble, and the
    one that the published weights were trained with: the reference swaps the axes.
    """
    side = int(table.shape[0] ** 0.5)
    grid = grid if order == "ij" else (grid[1], grid[0])
    weights = [_bilinear(n, side, table.device) for n in grid]
    square = table.float().view(side, side, -1)
    return torch.einsum("ir,jc,rcd->ijd", *weights, square).flatten(0, 1)


def _bilinear(num_samples: int, side: int, device: torch.device) -> Tensor:
    """(num_samples, side) float32 weights of each table entry in each sample; pixel centres, zeros outside."""
    sample = (torch.arange(num_samples, dtype=torch.float32, device=device) + 0.5) * side / num_samples - 0.5
    distance = (sample[:, None] - torch.arange(side, dtype=torch.float32, device=device)).abs()
    return (1.0 - distance).clamp(min=0.0)


def window_order(grid: Grid, window: int) -> tuple[Tensor, list[int]]:
    """Patches window by window, in tiles from the top left: (rows·columns,) int64 permutation, and the tiles' sizes."""
    rows, columns = grid
    index = torch.arange(rows * columns).view(rows, columns)
    tiles = [t.flatten() for band in index.split(window, dim=0) for t in band.split(window, dim=1)]
    return torch.cat(tiles), [len(t) for t in tiles]


def merge_cells(hidden: Tensor, grid: Grid, merge_size: int) -> Tensor:
    """hidden (rows·columns, C) -> (cells, C·merge²), channel-major: entry c·merge² + dy·merge + dx."""
    rows, columns = grid
    cells = hidden.view(rows // merge_size, merge_size, columns // merge_size, merge_size, -1)
    return cells.permute(0, 2, 4, 1, 3).reshape(rows * columns // merge_size**2, -1)


class PatchEmbedder(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.order = config.pos_emb_order
        frame = 3 * config.patch_size**2
        self.patch_embedding = Linear(config.patch_temporal * frame, config.hidden_size, bias=False)
        self.position_embedding_table = nn.Embedding(config.pos_emb_height * config.pos_emb_width, config.hidden_size)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """patches (P, 588) of one frame each -> (P, C) float32."""
        first, second = self.patch_embedding.weight.chunk(2, dim=1)
        weight = first + second  # the frame is shown twice
        embedded = F.linear(patches.to(compute_dtype(weight)), weight).float()
        table = self.position_embedding_table.weight
        return embedded + torch.cat([resample_table(table, grid, self.order) for grid in grids])


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.proj = (Linear(width, width) for _ in range(4))

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], sizes: list[int]) -> Tensor:
        """hidden (P, C), cut into `sizes` of patches that see each other; rotary: cos and sin (P, 1, head_dim/2)."""
        q, k, v = (
            proj(hidden).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (P, H, head_dim)
        q, k = (rotate(x.float(), *rotary).to(v.dtype) for x in (q, k))
        if len(set(sizes)) == 1:  # equal sizes go in one call: training batches are mostly that
            out = _attend(*(x.unflatten(0, (len(sizes), sizes[0])) for x in (q, k, v))).flatten(0, 1)
        else:
            parts = zip(*(x.split(sizes) for x in (q, k, v)), strict=True)
            out = torch.cat([_attend(*(x[None] for x in part))[0] for part in parts])
        return self.proj(out.flatten(1))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (n, H, patches, head_dim)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig | TileVisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden)))


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, eps=1e-5)  # fixed in the reference, unlike ln_pre and ln_post
        self.attn = VisionAttention(config)
        self.norm2 = LayerNorm(config.hidden_size, eps=1e-5)
        self.mlp = VisionMLP(config)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], sizes: list[int]) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden), rotary, sizes)
        return hidden + self.mlp(self.norm2(hidden))


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedder = PatchEmbedder(config)
        self.ln_pre = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))
        self.ln_post = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """patches (P, 588) of all images one after another -> (P/merge², C·merge²) float32."""
        config, device = self.config, patches.device
        orders, window_sizes, start = [], [], 0
        for grid in grids:
            order, sizes = window_order(grid, config.window)
            orders.append(order + start)
            window_sizes += sizes
            start += grid[0] * grid[1]
        order = torch.cat(orders).to(device)
        sizes_of = {"full_attention": [r * c for r, c in grids], "window_attention": window_sizes}
        rotary = tuple(x[order] for x in self.rotary(grids, device))

        hidden = self.ln_pre(self.patch_embedder(patches, grids))[order]
        for layer, kind in zip(self.layers, config.layer_types, strict=True):
            hidden = layer(hidden, rotary, sizes_of[kind])
        hidden = self.ln_post(hidden[torch.argsort(order)])
        images = hidden.split(sizes_of["full_attention"])
        return torch.cat([merge_cells(x, grid, config.merge_size) for x, grid in zip(images, grids, strict=True)])

    def rotary(self, grids: Sequence[Grid], device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin (P, 1, head_dim/2) in raster order: the column turns the first pairs, the row the others."""
        half = self.config.hidden_size // self.config.num_attention_heads // 2
        frequencies = rotary_frequencies(half, self.config.rope_theta, device)
        angles = []
        for rows, columns in grids:
            # Coordinates count from 1: the reference keeps 0 for a class token that this tower does not have.
            row = torch.arange(1, rows + 1, device=device).repeat_interleave(columns)
            column = torch.arange(1, columns + 1, device=device).repeat(rows)
            angles.append(torch.cat((column[:, None] * frequencies, row[:, None] * frequencies), dim=1))
        joined = torch.cat(angles)[:, None]
        return joined.cos(), joined.sin()


class VisionAdapter(nn.Module):
    def __init__(self, config: ModelConfig, merged_size: int) -> None:
        super().__init__()
        self.fc1 = Linear(merged_size, config.projector_hidden_size, bias=False)
        self.fc2 = Linear(config.projector_hidden_size, config.projector_hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.fc2(F.gelu(self.fc1(x))))


def perception_norm(features: Tensor, eps: float) -> Tensor:
    """Image features leave with the unit mean square of a text row, so the embedding norm is not applied again."""
    return rms_norm(features, eps)
