"""The text stack: what all families share of it, and the layers of muse_spark with gated attention and residual gates.

Experts are in `moe.py`, masks in `attention.py`, the head in `model.py`; `glimmer.py` and `llama4.py` hold the layers
of the other families. Source: transformers 5.23 `muse_spark`;
names of modules and parameters are those of its checkpoints.

Letters: B batch, T tokens, D hidden width, H query heads, K key-value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from musespark.model.config import LayerType, TextConfig
from musespark.model.network.attention import Block, attend, plan_attention
from musespark.model.network.layers import (
    CenteredRMSNorm,
    InputScaledRMSNorm,
    Linear,
    ResidualGate,
    RMSNorm,
    rms_norm,
    rotary_frequencies,
    rotate,
)
from musespark.model.network.moe import DenseMLP, MixtureOfExperts, Routing

# What a layer needs to know of the positions: cos and sin (B or 1, 1, T, d/2); Llama 4 adds the temperature of queries.
Rotary = tuple[Tensor, ...]


class KVCache:
    """Keys and values of the tokens seen so far, (B, K, S, d) per layer; the obvious kind, which forgets nothing.

    Sliding layers could drop what left their window; the mask hides it all the same, and the engine's pages do drop it.
    """

    def __init__(self, config: TextConfig) -> None:
        self.num_tokens = 0
        self.keys: list[Tensor | None] = [None] * config.num_hidden_layers
        self.values: list[Tensor | None] = [None] * config.num_hidden_layers

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add new columns to a layer and return all of them."""
        past_k, past_v = self.keys[layer], self.values[layer]
        if past_k is not None and past_v is not None:
            k, v = torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)
        self.keys[layer], self.values[layer] = k, v
        return k, v


class GroupedQueryAttention(nn.Module):
    """The projections, in steps that a runner with pages of its own can take apart: project, keep, attend, finish.

    What happens to q and k before they meet, and to the result after, is the family's: `project` and `finish`.
    """

    def __init__(self, config: TextConfig, layer: int, *, gated: bool) -> None:
        super().__init__()
        width, head_dim = config.hidden_size, config.head_dim
        self.layer = layer
        self.head_dim = head_dim
        self.eps = config.rms_norm_eps
        self.uses_rope = config.layer_uses_rope[layer]
        self.q_proj = Linear(width, config.num_attention_heads * head_dim, bias=False)
        self.k_proj = Linear(width, config.num_key_value_heads * head_dim, bias=False)
        self.v_proj = Linear(width, config.num_key_value_heads * head_dim, bias=False)
        if gated:
            self.gate_proj = Linear(width, config.num_attention_heads * head_dim, bias=False)
        self.o_proj = Linear(config.num_attention_heads * head_dim, width, bias=False)

    def forward(self, hidden: Tensor, rotary: Rotary, plan: list[Block], cache: KVCache | None) -> Tensor:
        """hidden (B, T, D) -> (B, T, D)."""
        q, k, v = self.project(hidden, rotary)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        return self.combine(hidden, q, k, v, plan)

    def project(self, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, T, d), k and v (B, K, T, d), ready to attend and to keep."""
        raise NotImplementedError

    def combine(self, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor, plan: list[Block]) -> Tensor:
        """Attend with q to all the keys k and values v that `plan` speaks of, then finish: (B, T, D)."""
        return self.finish(hidden, self.attend(q, k, v, plan))

    def finish(self, hidden: Tensor, heads: Tensor) -> Tensor:
        """From what the heads saw, (B, T, H, d), to the output of the branch that read `hidden`: (B, T, D)."""
        raise NotImplementedError

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: list[Block]) -> Tensor:
        """(B, T, H, d)."""
        return attend(q, k, v, plan, self.head_dim**-0.5).transpose(1, 2)

    def heads(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden (B, T, D) -> q (B, H, T, d), k and v (B, K, T, d) as projected."""
        q, k, v = (
            proj(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return q, k, v


class Attention(GroupedQueryAttention):
    """With normed q and k, a norm per output head, and a sigmoid gate before `o_proj`."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__(config, layer, gated=True)
        self.qk_scale_factor = config.qk_scale_factor

    def project(self, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.heads(hidden)
        dtype = v.dtype
        q = rms_norm(q, self.eps) * self.qk_scale_factor
        k = rms_norm(k, self.eps)
        if self.uses_rope:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        return q.to(dtype), k.to(dtype), v

    def finish(self, hidden: Tensor, heads: Tensor) -> Tensor:
        out = rms_norm(heads, self.eps)
        return self.o_proj(out.flatten(2) * torch.sigmoid(self.gate_proj(hidden).float()))


class Layer(nn.Module):
    """A decoder layer of any family: `join` is what it does with the output of its attention."""

    input_layernorm: nn.Module
    self_attn: GroupedQueryAttention

    def forward(
        self, hidden: Tensor, rotary: Rotary, plan: list[Block], cache: KVCache | None
    ) -> tuple[Tensor, Routing | None]:
        return self.join(hidden, self.self_attn(self.input_layernorm(hidden), rotary, plan, cache))

    def join(self, hidden: Tensor, branch: Tensor) -> tuple[Tensor, Routing | None]:
        """The layer from the output of its attention, `branch`, on. Both (B, T, D)."""
        raise NotImplementedError


class DecoderLayer(Layer):
    """Attention, then experts: each between a norm before and a norm after, joined to the stream by a learned gate."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.post_norm_eps = config.post_norm_eps
        self.input_layernorm = CenteredRMSNorm(width, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_residual_gate = ResidualGate(width, config.residual_gate_temperature)
        self.pre_feedforward_layernorm = CenteredRMSNorm(width, config.rms_norm_eps)
        is_sparse = config.mlp_layer_types[layer] == "sparse"
        self.mlp = MixtureOfExperts(config) if is_sparse else DenseMLP(width, config.intermediate_size)
        self.post_feedforward_layernorm = InputScaledRMSNorm(width, config.post_norm_eps)
        self.post_feedforward_residual_gate = ResidualGate(width, config.residual_gate_temperature)

    def join(self, hidden: Tensor, branch: Tensor) -> tuple[Tensor, Routing | None]:
        # The norm after attention has no weight, hence no tensor in a checkpoint.
        hidden = self.post_attention_residual_gate(hidden, rms_norm(branch, self.post_norm_eps))
        branch, routing = self.mlp(self.pre_feedforward_layernorm(hidden))
        return self.post_feedforward_residual_gate(hidden, self.post_feedforward_layernorm(branch)), routing


class TextModel(nn.Module):
    """Embedding to final norm. `embed` and `forward` are apart so that image features can replace rows between them."""

    layer_class: Callable[[TextConfig, int], Layer] = DecoderLayer

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(type(self).layer_class(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids (B, T) int64 -> (B, T, D) float32, each row of unit mean square."""
        return rms_norm(self.embed_tokens(token_ids), self.config.rms_norm_eps)

    def rotary(self, positions: Tensor) -> Rotary:
        """cos and sin (B or 1, 1, T, d/2) float32 for positions (B or 1, T)."""
        frequencies = rotary_frequencies(self.config.head_dim, self.config.rope_theta, positions.device)
        angles = (positions[..., None].float() * frequencies)[:, None]
        return angles.cos(), angles.sin()

    def forward(
        self,
        hidden: Tensor,
        *,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """hidden (B, T, D) float32 -> the normed stream (B, T, D) float32 and the routing of every sparse layer.

        positions (B, T) int64 feed the rotary embedding; without them tokens count on from the cache. segments (B, T)
        int64 number the documents of packed rows: no attention across them. Raises ValueError for both segments and
        a cache.
        """
        config, num_tokens = self.config, hidden.shape[1]
        if cache is not None and segments is not None:
            raise ValueError("packed documents (segments) can't be used with a cache: one row is one sequence there")
        num_past = 0 if cache is None else cache.num_tokens
        if positions is None:
            positions = torch.arange(num_past, num_past + num_tokens, device=hidden.device)[None]
        rotary, plans = self.prepare(num_tokens, positions, num_past, segments)
        routings = []
        for layer, kind in zip(self.layers, config.layer_types, strict=True):
            hidden, routing = layer(hidden, rotary, plans[kind], cache)
            if routing is not None:
                routings.append(routing)
        if cache is not None:
            cache.num_tokens += num_tokens
        return self.norm(hidden), routings

    def prepare(
        self, num_tokens: int, positions: Tensor, num_past: int = 0, segments: Tensor | None = None
    ) -> tuple[Rotary, dict[LayerType, list[Block]]]:
        """What layers take beside the stream: rotary, and for each kind of layer its plan. See `forward`."""
        kinds = sorted(set(self.config.layer_types))
        plans = {kind: self._plan(kind, num_tokens, num_past, positions, segments) for kind in kinds}
        return self.rotary(positions), plans

    def _plan(
        self, kind: LayerType, num_tokens: int, num_past: int, positions: Tensor, segments: Tensor | None
    ) -> list[Block]:
        window = self.config.sliding_window if kind == "sliding_attention" else None
        chunk = self.config.attention_chunk_size if kind == "chunked_attention" else None
        if chunk is not None and segments is not None:
            # Documents have chunks of their own: each is one more document.
            segments, chunk = (segments << 32) + positions // chunk, None
        return plan_attention(num_tokens, num_past, window, segments, positions.device, chunk=chunk)
