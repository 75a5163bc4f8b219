"""The obvious runner: one token at a time through the torch network in float32, keys and values in pages.

Any family: chunked layers keep their pages in the group of sliding ones, and need those of the current chunk only.
The oracle for the engine and for the native runner. Since every token runs alone, its logits cannot depend on the
batch or on chunking, bit for bit. Pages start as NaN, so reading one that was never written shows in the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from musespark.engine.runner import NO_PAGE, PAGE_SIZE, Batch, Float32, WholeImage
from musespark.errors import EngineFailed
from musespark.model.config import ModelConfig
from musespark.model.network import Network
from musespark.model.network.attention import Block
from musespark.model.network.text import Layer

if TYPE_CHECKING:
    from musespark.chat.images import PatchedImage


class ReferenceRunner:
    """Implements `musespark.engine.runner.Runner`. Slow on purpose: about one millisecond per token and layer."""

    def __init__(self, network: Network, *, num_full_pages: int, num_sliding_pages: int) -> None:
        self.config: ModelConfig = network.config
        self.num_full_pages = num_full_pages
        self.num_sliding_pages = num_sliding_pages
        self.network = network
        text = self.config.text
        num_pages = {
            "full_attention": num_full_pages,
            "sliding_attention": num_sliding_pages,
            "chunked_attention": num_sliding_pages,
        }
        self.pages = [  # per layer: (pages, k and v, tokens of the page, K, d)
            torch.full((num_pages[kind], 2, PAGE_SIZE, text.num_key_value_heads, text.head_dim), torch.nan)
            for kind in text.layer_types
        ]
        self.closed = False

    @torch.no_grad()
    def forward(self, batch: Batch) -> Float32:
        self._check_open()
        model = self.network.text_model
        tokens = self._tokens(batch)
        hidden = [model.embed(torch.tensor([[int(token)]])) for token in batch.token_ids]  # N of (1, 1, D)
        for row, features in zip(batch.embed_rows, batch.embeds, strict=True):
            hidden[row] = torch.from_numpy(features.copy())[None, None]
        for index, (layer, kind) in enumerate(zip(model.layers, self.config.text.layer_types, strict=True)):
            pages = self.pages[index]
            assert isinstance(layer, Layer)
            queries = []
            for row, (position, tables) in enumerate(tokens):  # first all rows write their key and value
                normed = layer.input_layernorm(hidden[row])
                q, k, v = layer.self_attn.project(normed, model.rotary(torch.tensor([[position]])))
                page, slot = _slots(tables[kind], np.array([position]))
                pages[page, :, slot] = torch.stack((k[0, :, 0], v[0, :, 0]))[None]
                queries.append((normed, q))
            for row, (position, tables) in enumerate(tokens):
                k, v = self._gather(pages, tables[kind], position, kind)
                plan = [Block(0, 1, 0, k.shape[2], causal=False, mask=None)]
                branch = layer.self_attn.combine(queries[row][0], queries[row][1], k, v, plan)
                hidden[row], _ = layer.join(hidden[row], branch)
        logits = [self.network.logits(model.norm(hidden[row]))[0, 0] for row in batch.logit_rows]
        if not logits:
            return np.zeros((0, self.config.text.vocab_size), np.float32)
        return torch.stack(logits).numpy()

    @torch.no_grad()
    def encode_image(self, image: PatchedImage) -> Float32:
        self._check_open()
        return self.network.encode_images([image])[0].numpy()

    def start_image(self, image: PatchedImage) -> WholeImage:
        return WholeImage(self.encode_image, image)

    def close(self) -> None:
        self.pages = []
        self.closed = True

    def _check_open(self) -> None:
        if self.closed:
            raise EngineFailed("the runner is closed")

    def _tokens(self, batch: Batch) -> list[tuple[int, dict[str, np.ndarray]]]:
        """Position and block tables of every row."""
        tokens: list[tuple[int, dict[str, np.ndarray]]] = []
        for s, (start, end) in enumerate(zip(batch.query_start, batch.query_start[1:], strict=False)):
            tables = {
                "full_attention": batch.full_block_table[s],
                "sliding_attention": batch.sliding_block_table[s],
                "chunked_attention": batch.sliding_block_table[s],
            }
            tokens += [(int(position), tables) for position in batch.positions[start:end]]
        assert len(tokens) == len(batch.token_ids)
        return tokens

    def _gather(self, pages: Tensor, table: np.ndarray, position: int, kind: str) -> tuple[Tensor, Tensor]:
        """Keys and values (1, K, visible, d) that a query at `position` sees, itself included."""
        text = self.config.text
        first = {
            "full_attention": 0,
            "sliding_attention": max(0, position - text.sliding_window + 1),
            "chunked_attention": position - position % max(1, text.attention_chunk_size),
        }[kind]
        page, slot = _slots(table, np.arange(first, position + 1))
        kv = pages[page, :, slot].permute(1, 2, 0, 3).contiguous()  # from (visible, 2, K, d) to (2, K, visible, d)
        return kv[0][None], kv[1][None]


def _slots(table: np.ndarray, positions: np.ndarray) -> tuple[Tensor, Tensor]:
    """Where each position lives: page ids and places within the page."""
    pages = table[positions // PAGE_SIZE]
    assert (pages != NO_PAGE).all(), (
        f"positions {positions[pages == NO_PAGE]} are needed, and have no page in the table"
    )
    return torch.from_numpy(pages.astype(np.int64)), torch.from_numpy(positions % PAGE_SIZE)
