"""The decoder as training runs it: the same numbers as `musespark.model.network`, several times faster on a CPU.

The readable network is the reference and this file its fast twin (a test compares them). What differs: matrices are
cast to bfloat16 once a step, tokens are sorted by expert so that each expert is one matrix product, runs of
element-wise operations are compiled, and logits exist only for the tokens that are learned, a few hundred at a time. It
reads weights by their Hugging Face names from a plain mapping, and embeddings of images come in from outside.

Letters: B rows, T tokens of a row, N = B * T, D hidden, H query heads, K kv heads, E experts, k experts per token,
M latent width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from musespark.model.config import TextConfig
from musespark.training.grouped import Dispatch, GroupedLinear, Permute
from musespark.training.head_loss import LOGIT_ROWS, HeadLoss, softmax_gradient

PREFIX = "model.language_model."


@dataclass(slots=True)
class Routing:
    """What the balance of the experts needs from one forward: per layer, tokens per expert; and the z-loss."""

    loads: list[Tensor]  # L tensors (E,) int64
    z_loss: Tensor


class Decoder:
    """Hidden states and losses of packed rows. Holds no weights, only constants and compiled functions."""

    def __init__(self, config: TextConfig, *, compile: bool = False) -> None:
        self.config = config
        wrap: Callable[[Any], Any] = torch.compile if compile else (lambda function: function)
        self._attention_in = wrap(_attention_in)
        self._softmax = wrap(_softmax)
        self._attention_out = wrap(_attention_out)
        self._route = wrap(_route)
        self._swiglu = wrap(_swiglu)
        self._expert_out = wrap(_expert_out)
        self._moe_out = wrap(_moe_out)
        self._softmax_gradient = wrap(softmax_gradient)

    def hidden(
        self, weights: Mapping[str, Tensor], biases: Mapping[int, Tensor], embedded: Tensor, segments: Tensor
    ) -> tuple[Tensor, Routing]:
        """Final normed hidden states (B, T, D) of normed input embeddings (B, T, D).

        A token attends to those before it with the same number in `segments` (B, T).
        """
        c = self.config
        residual = embedded
        position = torch.arange(segments.shape[1])
        distance = position[:, None] - position[None, :]
        same = (segments[:, :, None] == segments[:, None, :]) & (distance >= 0)  # (B, T, T)
        masks = dict.fromkeys(("full_attention", "sliding_attention"), _additive(same, residual.dtype))
        if segments.shape[1] > c.sliding_window:
            masks["sliding_attention"] = _additive(same & (distance < c.sliding_window), residual.dtype)
        cos, sin = rotary(c, segments.shape[1])
        routing = Routing([], torch.zeros(()))
        for layer in range(c.num_hidden_layers):
            w = _Layer(weights, f"{PREFIX}layers.{layer}.")
            residual = self._attention(w, residual, masks[c.layer_types[layer]], cos, sin, c.layer_uses_rope[layer])
            residual = self._moe(w, biases[layer], residual, routing)
        out = _rms_norm(residual, c.rms_norm_eps) * weights[f"{PREFIX}norm.weight"]
        return out.to(residual.dtype), routing

    def _attention(self, w: _Layer, residual: Tensor, mask: Tensor, cos: Tensor, sin: Tensor, use_rope: bool) -> Tensor:
        c = self.config
        (q, k, v), gate = self._attention_in(
            residual,
            w["input_layernorm.weight"],
            torch.cat([w[f"self_attn.{name}_proj.weight"] for name in ("q", "k", "v", "gate")]),
            cos if use_rope else None,
            sin if use_rope else None,
            (c.num_attention_heads, c.num_key_value_heads, c.head_dim),
            c.qk_scale_factor,
            c.rms_norm_eps,
        )
        scores = (
            q.flatten(0, 1) @ k.flatten(0, 1).mT
        )  # (B H, T, T); on a CPU three batched products beat the fused kernel
        shares = self._softmax(scores.view(*q.shape[:2], *scores.shape[1:]), mask, c.head_dim**-0.5)
        out = (shares.flatten(0, 1) @ v.flatten(0, 1)).view(q.shape)  # (B, H, T, head_dim)
        return self._attention_out(
            out,
            gate,
            w["self_attn.o_proj.weight"],
            residual,
            w["post_attention_residual_gate.gate"],
            c.residual_gate_temperature,
            c.rms_norm_eps,
            c.post_norm_eps,
        )

    def _moe(self, w: _Layer, bias: Tensor, residual: Tensor, routing: Routing) -> Tensor:
        c = self.config
        latent, picks, shares, z_loss = self._route(
            residual,
            w["pre_feedforward_layernorm.weight"],
            w["mlp.gate.weight"],
            bias,
            w["mlp.pre_expert_proj.weight"],
            w["mlp.pre_expert_norm.weight"],
            c.num_experts_per_tok,
            c.output_multiplier,
            c.routed_scaling_factor,
            c.rms_norm_eps,
        )
        order = picks.flatten().argsort(stable=True)  # (N k,) pairs sorted by expert
        loads = torch.bincount(picks.flatten(), minlength=c.num_local_experts)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        counts = loads.tolist()
        x = Dispatch.apply(latent, order, back, c.num_experts_per_tok)  # (N k, M)
        x = self._swiglu(GroupedLinear.apply(x, w["mlp.experts.gate_up_proj"], counts))
        x = GroupedLinear.apply(x, w["mlp.experts.down_proj"], counts)
        x = self._expert_out(x, w["mlp.experts.post_expert_norm.weight"], c.post_norm_eps)
        x = Permute.apply(x, back, order)
        routing.loads.append(loads)
        routing.z_loss = routing.z_loss + z_loss
        return self._moe_out(
            x,
            shares,
            w["mlp.post_expert_proj.weight"],
            residual,
            w["post_feedforward_layernorm.weight"],
            w["post_feedforward_residual_gate.gate"],
            c.residual_gate_temperature,
            c.post_norm_eps,
        )

    def loss(self, weights: Mapping[str, Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed cross-entropy (nats) of `targets` (n,) given hidden rows (n, D)."""
        missing = -len(targets) % LOGIT_ROWS  # whole slices only: every new shape would be compiled again
        hidden, targets = F.pad(hidden, (0, 0, 0, missing)), F.pad(targets, (0, missing), value=-1)
        scale = self.config.output_multiplier
        return HeadLoss.apply(
            hidden,
            weights["lm_head.weight"],
            targets,
            scale,
            self.config.final_logit_softcapping,
            self._softmax_gradient,
        )


class _Layer:
    """The weights of one layer by their short names."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str) -> None:
        self._weights = weights
        self._prefix = prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[self._prefix + name]


def embed(config: TextConfig, weights: Mapping[str, Tensor], token_ids: Tensor) -> Tensor:
    """Normed input embeddings (B, T, D) float32 of token ids (B, T)."""
    x = F.embedding(token_ids, weights[f"{PREFIX}embed_tokens.weight"]).float()
    return _rms_norm(x, config.rms_norm_eps)


def _rms_norm(x: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def rotary(config: TextConfig, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin (T, head_dim), halves repeated."""
    frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    angles = torch.arange(length).float()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T, T) booleans as a mask to add, (B, 1, T, T)."""
    mask = torch.zeros(allowed.shape, dtype=dtype)
    return mask.masked_fill_(~allowed, float("-inf"))[:, None]


def _attention_in(
    residual: Tensor,
    norm: Tensor,
    qkvg: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: tuple[int, int, int],
    qk_scale: float,
    eps: float,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    batch, length, _ = residual.shape
    num_q, num_kv, head_dim = heads
    x = _rms_norm(residual, eps) * (1 + norm)
    x = x.to(qkvg.dtype) @ qkvg.mT
    q, k, v, gate = x.split([num_q * head_dim, num_kv * head_dim, num_kv * head_dim, num_q * head_dim], dim=-1)
    q = _rms_norm(q.view(batch, length, num_q, head_dim), eps) * qk_scale
    k = _rms_norm(k.view(batch, length, num_kv, head_dim), eps)
    if cos is not None and sin is not None:
        q = _rotate(q, cos, sin)
        k = _rotate(k, cos, sin)
    groups = num_q // num_kv
    k = k[:, :, :, None].expand(-1, -1, -1, groups, -1).reshape(batch, length, num_q, head_dim)
    v = (
        v.view(batch, length, num_kv, 1, head_dim)
        .expand(-1, -1, -1, groups, -1)
        .reshape(batch, length, num_q, head_dim)
    )
    q, k, v = (x.to(qkvg.dtype).transpose(1, 2).contiguous() for x in (q, k, v))
    return (q, k, v), gate


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half embedding of (B, T, H, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def _softmax(scores: Tensor, mask: Tensor, scale: float) -> Tensor:
    return torch.softmax(scores.float() * scale + mask, dim=-1).to(scores.dtype)


def _attention_out(
    out: Tensor,
    gate: Tensor,
    o_proj: Tensor,
    residual: Tensor,
    residual_gate: Tensor,
    temperature: float,
    eps: float,
    post_eps: float,
) -> Tensor:
    x = _rms_norm(out.transpose(1, 2), eps).flatten(-2)  # (B, T, H head_dim)
    x = (x * torch.sigmoid(gate.float())).to(o_proj.dtype) @ o_proj.mT
    return _mix(residual, _rms_norm(x, post_eps), residual_gate, temperature)


def _mix(residual: Tensor, branch: Tensor, gate: Tensor, temperature: float) -> Tensor:
    w = gate / temperature
    beta = torch.sigmoid(w)
    alpha = torch.sqrt(torch.clamp(torch.sigmoid(-w) * (1 + beta), min=1e-3))
    return (alpha * residual.float() + beta * branch).to(residual.dtype)


def _route(
    residual: Tensor,
    norm: Tensor,
    router: Tensor,
    bias: Tensor,
    pre: Tensor,
    pre_norm: Tensor,
    num_picks: int,
    multiplier: float,
    scaling: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents (N, M), experts (N, k), their shares (N, k) and the router's z-loss of one layer."""
    x = _rms_norm(residual.flatten(0, 1), eps) * (1 + norm)
    logits = (x @ router.mT) * multiplier
    scores = torch.sigmoid(logits)
    picks = torch.topk(scores + bias, num_picks, dim=-1, sorted=False).indices
    shares = scores.gather(1, picks)
    shares = shares / (shares.sum(-1, keepdim=True) + 1e-15) * scaling
    latent = _rms_norm(x.to(pre.dtype) @ pre.mT, eps) * (1 + pre_norm)
    return latent.to(pre.dtype), picks, shares, logits.pow(2).mean()


def _swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return (F.silu(gate.float()) * up.float()).to(x.dtype)


def _expert_out(x: Tensor, norm: Tensor, eps: float) -> Tensor:
    return _rms_norm(x.float() * (1 + norm), eps).to(x.dtype)


def _moe_out(
    x: Tensor,
    shares: Tensor,
    post: Tensor,
    residual: Tensor,
    norm: Tensor,
    gate: Tensor,
    temperature: float,
    eps: float,
) -> Tensor:
    y = (x.view(*shares.shape, -1).float() * shares[..., None]).sum(1).to(post.dtype)  # (N, M)
    z = (y @ post.mT).float() * (1 + norm)
    z = _rms_norm(z, eps)
    return _mix(residual, z.view(residual.shape), gate, temperature)
