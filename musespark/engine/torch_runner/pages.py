"""K and V in pages on the device, and attention to them.

The pages that a span of sequences sees are copied together and attended to in one call of torch's own attention, whose
kernels are fast on every device. The copy costs three times the memory traffic of a kernel that reads pages in place:
little beside the weights while contexts are short. One sequence's keys and values of a layer must fit twice.

Letters: N rows, S sequences, T rows of each, P pages of each table, L = 64P keys, H query heads, K key-value heads,
G = H / K, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from musespark.engine.runner import PAGE_SIZE
from musespark.engine.torch_runner.layout import Group, Layout, Span
from musespark.engine.view import Everything, OwnChunk, Window
from musespark.model.config import TextConfig

COPIED_BYTES = 256 << 20  # of keys and values at once, where there is more than one sequence


class Pages:
    """The memory of one group: layers that see alike."""

    def __init__(
        self, group: Group, num_layers: int, config: TextConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        # One spare page. Zeros, not garbage: a masked value counts as nothing only if it is a number.
        self.group = group
        shape = (num_layers, 2, config.num_key_value_heads, group.num_pages + 1, PAGE_SIZE, config.head_dim)
        self.memory = torch.zeros(shape, dtype=dtype, device=device)

    def clear(self, pages: Tensor) -> None:
        """Forget what is in these pages (ids int64), in all layers: sequences that were there may have been NaN."""
        if len(pages):
            self.memory.index_fill_(3, pages, 0)

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Keep k and v (1, K, N, d) at `slots` (N,) of a layer of the group."""
        self.memory[layer].flatten(2, 3).index_copy_(2, slots, torch.cat((k, v)))

    def read(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (S, K, L, d) of the pages in `tables` (S, P)."""
        num_sequences, num_pages = tables.shape
        found = self.memory[layer].index_select(2, tables.flatten())  # (2, K, S·P, 64, d)
        found = found.view(2, found.shape[1], num_sequences, num_pages * PAGE_SIZE, -1).transpose(1, 2)
        return found[0], found[1]


@dataclass(frozen=True, slots=True, eq=False)
class SpanKeys:
    """What the rows of a span see in every layer of a group."""

    span: Span
    tables: Tensor  # (S, P)
    mask: Tensor  # (S, 1, G·T, L) bool


@dataclass(frozen=True, slots=True, eq=False)
class GroupKeys:
    """The same for all rows of a step, and where their own keys and values go."""

    pages: Pages
    slots: Tensor  # (N,)
    spans: list[SpanKeys]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Keep k and v (1, K, N, d), then attend with q (1, H, N, d): (1, N, H, d)."""
        self.pages.write(layer, self.slots, k, v)
        parts = [self._attend(layer, q[0], k.shape[1], some, scale) for some in self.spans]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[None]

    def _attend(self, layer: int, q: Tensor, num_kv_heads: int, keys: SpanKeys, scale: float) -> Tensor:
        """q (H, N, d) of all rows -> (S·T, H, d) of the span."""
        span = keys.span
        shape = (num_kv_heads, -1, span.num_sequences, span.num_rows, q.shape[-1])  # (K, G, S, T, d)
        rows = q[:, span.start : span.start + span.num_sequences * span.num_rows].reshape(shape)
        # The heads of a group become rows: they read the same keys.
        queries = rows.permute(2, 0, 1, 3, 4).flatten(2, 3)  # (S, K, G·T, d)
        k, v = self.pages.read(layer, keys.tables)
        out = F.scaled_dot_product_attention(queries, k, v, attn_mask=keys.mask, scale=scale)
        out = out.unflatten(2, (-1, span.num_rows)).permute(0, 3, 1, 2, 4)  # (S, T, K, G, d)
        return out.flatten(2, 3).flatten(0, 1)


def keys_of_step(layout: Layout, values: Tensor, all_pages: list[Pages], config: TextConfig) -> list[GroupKeys]:
    """What every group needs of a step; `values` is that of `layout.Step`, on the device."""
    num_rows = layout.num_rows
    positions, at = values[num_rows : 2 * num_rows], 2 * num_rows
    heads = config.num_attention_heads // config.num_key_value_heads
    groups = []
    for (_, spans), pages in zip(layout.spans, all_pages, strict=True):
        slots, at = values[at : at + num_rows], at + num_rows
        keys = []
        for span in spans:
            size = span.num_sequences * span.num_pages
            tables, at = values[at : at + size].view(span.num_sequences, span.num_pages), at + size
            first, at = values[at : at + span.num_sequences], at + span.num_sequences
            rows = positions[span.start : span.start + span.num_sequences * span.num_rows]
            seen = _visible(rows.view(span.num_sequences, -1), first, span.num_pages, pages.group)  # (S, T, L)
            mask = seen[:, None].expand(-1, heads, -1, -1).flatten(1, 2)[:, None]
            keys.append(SpanKeys(span, tables, mask))
        groups.append(GroupKeys(pages, slots, keys))
    return groups


def _visible(positions: Tensor, first: Tensor, num_pages: int, group: Group) -> Tensor:
    """Which keys of the tables each row sees: positions (S, T), first (S,) -> (S, T, L) bool."""
    key = first[:, None, None] + torch.arange(num_pages * PAGE_SIZE, device=first.device)
    query = positions[..., None]
    if isinstance(group.view, Window):
        return (key <= query) & (key > query - group.view.size)
    if isinstance(group.view, OwnChunk):
        return (key <= query) & (key >= query - query % group.view.size)
    assert isinstance(group.view, Everything)
    return key <= query
