"""llama4: pre-norm layers with plain sums, chunked attention, and experts of full width beside a shared one.

Layers with rotary embedding attend to their own chunk, those without to everything; the latter let queries grow with
their position (`attn_temperature_tuning`). The image tower is in `tiles.py`. Source: transformers 5.23 `llama4`.

Letters: N tokens, E experts, k experts per token, D hidden width, F expert width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musespark.model.config import ModelConfig, TextConfig
from musespark.model.network.base import Network
from musespark.model.network.layers import (
    Linear,
    RMSNorm,
    compute_dtype,
    rms_norm,
    rotary_frequencies,
    rotate_neighbours,
    scale_frequencies,
)
from musespark.model.network.moe import DenseMLP, Routing
from musespark.model.network.text import GroupedQueryAttention, Layer, Rotary, TextModel
from musespark.model.network.tiles import TileTower

if TYPE_CHECKING:
    from musespark.chat.images import PatchedImage


class Llama4Attention(GroupedQueryAttention):
    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__(config, layer, gated=False)
        self.norms_qk = config.use_qk_norm and self.uses_rope
        self.tunes_temperature = config.attn_temperature_tuning and not self.uses_rope

    def project(self, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.heads(hidden)
        dtype = v.dtype
        cos, sin, temperature = rotary
        if self.uses_rope:
            q, k = rotate_neighbours(q.float(), cos, sin), rotate_neighbours(k.float(), cos, sin)
        if self.norms_qk:  # after the rotation, unlike in the Muse families
            q, k = rms_norm(q, self.eps), rms_norm(k, self.eps)
        if self.tunes_temperature:
            q = q * temperature
        return q.to(dtype), k.to(dtype), v

    def finish(self, hidden: Tensor, heads: Tensor) -> Tensor:
        return self.o_proj(heads.flatten(2))


class Llama4Router(Linear):
    """The highest logits win; the sigmoid of each is its expert's score, and scores are not normalised."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config.hidden_size, config.num_local_experts, bias=False)
        self.num_experts_per_tok = config.num_experts_per_tok

    def route(self, hidden: Tensor) -> Routing:
        """hidden (N, D)."""
        with torch.autocast(hidden.device.type, enabled=False):  # close logits decide which experts run
            logits = F.linear(hidden.float(), self.weight.float())
        values, indices = logits.topk(self.num_experts_per_tok, dim=-1)
        return Routing(logits, indices, torch.sigmoid(values))


class Llama4Experts(nn.Module):
    """All experts of a layer in two tensors for x @ W: (E, in, out), gate columns before up columns."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        num_experts, hidden, width = config.num_local_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, hidden, 2 * width))
        self.down_proj = nn.Parameter(torch.empty(num_experts, width, hidden))

    def forward(self, hidden: Tensor, routing: Routing) -> Tensor:
        """Every expert in turn takes its tokens. hidden (N, D) -> (N, D) float32."""
        dtype = compute_dtype(self.down_proj)
        out = torch.zeros_like(hidden, dtype=torch.float32)
        for e in range(self.down_proj.shape[0]):
            rows, slots = torch.where(routing.indices == e)
            # The score scales what the expert reads: with SwiGLU that is not the same as scaling what it says.
            scored = hidden[rows].float() * routing.weights[rows, slots, None]
            gate, up = (scored.to(dtype) @ self.gate_up_proj[e].to(dtype)).chunk(2, dim=-1)
            expert_out = (F.silu(gate) * up) @ self.down_proj[e].to(dtype)
            out = out.index_add(0, rows, expert_out.float())
        return out


class Llama4MoE(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.experts = Llama4Experts(config)
        self.router = Llama4Router(config)
        self.shared_expert = DenseMLP(config.hidden_size, config.moe_intermediate_size)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Routing]:
        """hidden (B, T, D) -> (B, T, D) and the routing of its B·T tokens."""
        rows = hidden.flatten(0, 1)  # (N, D)
        routing = self.router.route(rows)
        shared, _ = self.shared_expert(rows)
        return (shared + self.experts(rows, routing)).view(hidden.shape), routing


class Llama4Layer(Layer):
    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = Llama4Attention(config, layer)
        is_sparse = config.mlp_layer_types[layer] == "sparse"
        self.feed_forward = Llama4MoE(config) if is_sparse else DenseMLP(width, config.intermediate_size)
        self.input_layernorm = RMSNorm(width, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(width, config.rms_norm_eps)

    def join(self, hidden: Tensor, branch: Tensor) -> tuple[Tensor, Routing | None]:
        hidden = hidden + branch
        branch, routing = self.feed_forward(self.post_attention_layernorm(hidden))
        return hidden + branch, routing


class Llama4TextModel(TextModel):
    layer_class = Llama4Layer

    def embed(self, token_ids: Tensor) -> Tensor:
        return self.embed_tokens(token_ids).float()

    def rotary(self, positions: Tensor) -> Rotary:
        """cos and sin (B or 1, 1, T, d/2), and the temperature (B or 1, 1, T, 1), all float32."""
        config = self.config
        frequencies = rotary_frequencies(config.head_dim, config.rope_theta, positions.device)
        angles = (positions[..., None].float() * scale_frequencies(frequencies, config.rope_scaling))[:, None]
        steps = torch.floor((positions.float() + 1.0) / config.floor_scale)  # exact: positions are below 2^24
        temperature = 1.0 + config.attn_scale * torch.log1p(steps)
        return angles.cos(), angles.sin(), temperature[:, None, :, None]


class Llama4Language(nn.Module):
    """Text stack and head; exists for the prefix `language_model.` of both."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.model = Llama4TextModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)


class Projector(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear_1 = Linear(config.projector_hidden_size, config.text.hidden_size, bias=False)


class Llama4(Network):
    """Images are tiles: each one that `chat.tiles` cuts is an image here."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if config.tile_vision is not None:
            self.vision_model = TileTower(config, config.tile_vision)
            self.multi_modal_projector = Projector(config)
        self.language_model = Llama4Language(config.text)
        if not self.head.weight.is_meta:
            self.init_weights()

    @property
    def text_model(self) -> TextModel:
        return self.language_model.model

    @property
    def head(self) -> Linear:
        return self.language_model.lm_head

    def encode_images(self, images: Sequence[PatchedImage]) -> list[Tensor]:
        tiles = torch.stack([torch.as_tensor(image.patches, device=self.head.weight.device) for image in images])
        return list(self.multi_modal_projector.linear_1(self.vision_model(tiles)).float())

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden).float()

    @torch.no_grad()
    def init_weights(self, seed: int | None = None) -> None:
        """Fresh weights by transformers' rule; the same seed gives the same weights."""
        generator = None if seed is None else torch.Generator(self.head.weight.device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith(("class_embedding", "positional_embedding_vlm")):
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
            elif parameter.dim() > 1:
                parameter.normal_(std=self.config.text.initializer_range, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
