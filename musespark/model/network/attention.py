"""Which keys a query may see, and attention over them, in blocks of queries.

A block of queries looks at one contiguous range of keys: everything up to its end on full layers, the window before
it on sliding layers, its own chunk on chunked layers. So no mask is ever larger than block × range, a long sequence
costs a sliding or chunked layer linear time, and packed documents need no padding. The plan is made once per forward
pass and shared by all layers of a kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 1024  # the most queries that share a mask; the fewer, the less is computed beyond the diagonal
SMALLEST_BLOCK = 64  # a tiny window still gets blocks of this many queries, or its loop would cost more than it saves


@dataclass(frozen=True, slots=True)
class Block:
    """Queries [start, end) of this call see keys [first_key, end_key), under `mask` (B or 1, 1, queries, keys) bool.

    Without a mask, every query sees every key of the range, or with `causal`, those up to itself.
    """

    start: int
    end: int
    first_key: int
    end_key: int
    causal: bool
    mask: Tensor | None

    def same_view(self, start: int, end: int, first_key: int, end_key: int) -> bool:
        """Whether a block of these numbers is this one moved along the sequence, so that the mask can be shared."""
        moved = start - self.start
        old = (self.end, self.first_key, self.end_key)
        return old == (end - moved, first_key - moved, end_key - moved)


def plan_attention(
    num_queries: int,
    num_past: int,
    window: int | None,
    segments: Tensor | None,
    device: torch.device,
    *,
    chunk: int | None = None,
    block: int = QUERY_BLOCK,
) -> list[Block]:
    """Blocks that cover `num_queries` new tokens after `num_past` cached ones.

    window: a query sees that many keys, itself included; None for all before it. chunk: a query sees the keys of its
    own chunk of so many places, up to itself. segments (B, T) int64: document of each token; a query sees only its own
    document. Segments exclude cached tokens and chunks, and a chunk excludes a window.
    """
    assert segments is None or (num_past == 0 and chunk is None)
    assert window is None or chunk is None
    if window is not None:
        block = min(block, max(window, SMALLEST_BLOCK))
    elif segments is None and num_past == 0:
        block = num_queries  # plain causal attention needs no mask, so no blocks either
    blocks: list[Block] = []
    end = 0
    while end < num_queries:
        start, end = end, min(end + block, num_queries)
        first_key = 0 if window is None else max(0, num_past + start - window + 1)
        if chunk is not None:  # a block never crosses into the next chunk, so causality is all that is left to mask
            first_key = (num_past + start) // chunk * chunk
            end = min(end, first_key + chunk - num_past)
        end_key = num_past + end
        num_keys = end_key - first_key
        inside = window is None or num_keys <= window  # then the window hides nothing that causality does not
        if segments is None and inside and (end - start == num_keys or end - start == 1):
            blocks.append(Block(start, end, first_key, end_key, end - start == num_keys and num_keys > 1, None))
            continue
        if segments is None and blocks and blocks[-1].same_view(start, end, first_key, end_key):
            blocks.append(Block(start, end, first_key, end_key, False, blocks[-1].mask))
            continue
        query = torch.arange(num_past + start, end_key, device=device)[:, None]
        key = torch.arange(first_key, end_key, device=device)[None, :]
        mask = key <= query
        if window is not None:
            mask &= key > query - window
        mask = mask[None, None]  # (1, 1, queries, keys)
        if segments is not None:
            same = segments[:, start:end, None] == segments[:, None, first_key:end_key]
            mask = mask & same[:, None]
        blocks.append(Block(start, end, first_key, end_key, False, mask))
    return blocks


def attend(q: Tensor, k: Tensor, v: Tensor, plan: list[Block], scale: float) -> Tensor:
    """q (B, H, T, d); k, v (B, K, S, d), H a multiple of K: head h reads kv head h // (H/K). Returns (B, H, T, d)."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    outs = [
        F.scaled_dot_product_attention(
            q[:, :, b.start : b.end],
            k[:, :, b.first_key : b.end_key],
            v[:, :, b.first_key : b.end_key],
            attn_mask=b.mask,
            is_causal=b.causal,
            scale=scale,
        )
        for b in plan
    ]
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)
