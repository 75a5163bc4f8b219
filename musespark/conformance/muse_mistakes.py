"""Mistakes in muse_spark and muse_glimmer: the text stack. Those of their image tower are in `vision_mistakes.py`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from musespark.conformance.mistakes import (
    SHARED,
    WINDOWS,
    Mistake,
    Mistakes,
    add,
    both,
    editing,
    overriding,
    put,
    swap_dense,
    with_text,
)
from musespark.conformance.vision_mistakes import GRID_TOWER, table_order
from musespark.model.config import TextConfig
from musespark.model.network.glimmer import GlimmerAttention
from musespark.model.network.layers import (
    CenteredRMSNorm,
    InputScaledRMSNorm,
    Linear,
    ResidualGate,
    RMSNorm,
    rms_norm,
    rotate,
    rotate_neighbours,
)
from musespark.model.network.model import MuseSpark
from musespark.model.network.moe import Experts, Router, Routing
from musespark.model.network.text import Attention, DecoderLayer, TextModel


def _counted_from_the_first(text: TextConfig) -> dict[str, Any]:
    full = [(i + 1) % 4 == 0 for i in range(text.num_hidden_layers)]
    kinds = tuple("full_attention" if is_full else "sliding_attention" for is_full in full)
    return {"layer_types": kinds, "layer_uses_rope": tuple(not is_full for is_full in full)}


def _project(self: Attention, hidden: Tensor, rotary: Any, *, norm: bool, turn: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = self.heads(hidden)
    if norm:
        q, k = rms_norm(q, self.eps), rms_norm(k, self.eps)
    q = q * self.qk_scale_factor
    return (turn(q, *rotary), turn(k, *rotary), v) if self.uses_rope else (q, k, v)


def _project_neighbours(self: Attention, hidden: Tensor, rotary: Any) -> Any:
    return _project(self, hidden, rotary, norm=True, turn=rotate_neighbours)


def _project_unnormed(self: Attention, hidden: Tensor, rotary: Any) -> Any:
    return _project(self, hidden, rotary, norm=False, turn=rotate)


def _open_gate(self: Linear, hidden: Tensor) -> Tensor:
    return torch.full((*hidden.shape[:-1], self.out_features), 1e4)


def _embed_unnormed(self: TextModel, token_ids: Tensor) -> Tensor:
    return self.embed_tokens(token_ids).float()


def _without_cap(self: MuseSpark, hidden: Tensor) -> Tensor:
    return self.lm_head(hidden) * self.config.text.output_multiplier


def _without_multiplier(self: MuseSpark, hidden: Tensor) -> Tensor:
    cap = self.config.text.final_logit_softcapping
    return cap * torch.tanh(self.lm_head(hidden) / cap)


_TEXT: Mistakes = {
    "full-layers-counted-from-the-first": Mistake(
        "counts every fourth layer from the first instead of from the last", with_text(_counted_from_the_first)
    ),
    "rope-of-neighbours": Mistake(
        "turns pairs of neighbours (2i, 2i + 1) instead of halves (i, i + d/2)",
        overriding(Attention, "project", _project_neighbours),
    ),
    "no-qk-norm": Mistake("leaves queries and keys as projected", overriding(Attention, "project", _project_unnormed)),
    "no-output-gate": Mistake(
        "leaves out the sigmoid gate before o_proj",
        overriding(Linear, "forward", _open_gate, "self_attn.gate_proj"),
    ),
    "no-embedding-norm": Mistake(
        "gives the embedding to the first layer as it is", overriding(TextModel, "embed", _embed_unnormed)
    ),
    "final-norm-centred": Mistake(
        "adds 1 to the weight of the final norm, as for the other norms", editing(RMSNorm, add(1.0))
    ),
    "no-soft-cap": Mistake(
        "leaves out the soft cap: greedy decoding will not notice", overriding(MuseSpark, "logits", _without_cap)
    ),
    "no-output-multiplier": Mistake(
        "leaves out output_multiplier: greedy decoding will not notice",
        overriding(MuseSpark, "logits", _without_multiplier),
    ),
}


def _theta(value: float) -> Mistake:
    return Mistake(
        f"does not read rope_parameters and takes the class's own theta, {value:,.0f}",
        with_text(lambda _: {"rope_theta": value}),
    )


# Experts.


def _softmax_scores(self: Router, hidden: Tensor) -> Routing:
    logits = F.linear(hidden.float(), self.weight) * self.output_multiplier
    return _choose(self, logits, logits.softmax(-1), logits.softmax(-1))


def _biased_weights(self: Router, hidden: Tensor) -> Routing:
    logits = F.linear(hidden.float(), self.weight) * self.output_multiplier
    return _choose(self, logits, logits.sigmoid(), logits.sigmoid() + self.e_score_correction_bias)


def _choose(self: Router, logits: Tensor, scores: Tensor, weights: Tensor) -> Routing:
    indices = torch.topk(scores + self.e_score_correction_bias, self.num_experts_per_tok, dim=-1).indices
    weights = weights.gather(1, indices)
    return Routing(logits, indices, weights / weights.sum(-1, keepdim=True) * self.routed_scaling_factor)


def _norm_last(self: Experts, latent: Tensor, routing: Routing) -> Tensor:
    out = torch.zeros_like(latent)
    for e in range(self.down_proj.shape[0]):
        rows, slots = torch.where(routing.indices == e)
        gate, up = F.linear(latent[rows], self.gate_up_proj[e]).chunk(2, dim=-1)
        said = F.linear(F.silu(gate) * up, self.down_proj[e]) * routing.weights[rows, slots, None]
        out = out.index_add(0, rows, said)
    return self.post_expert_norm(out)


def _swap_halves(experts: Experts) -> None:
    gate, up = experts.gate_up_proj.chunk(2, dim=1)
    experts.gate_up_proj.copy_(torch.cat((up, gate), dim=1))


def _transpose(experts: Experts) -> None:
    experts.gate_up_proj.copy_(experts.gate_up_proj.transpose(1, 2).clone())


_EXPERTS: Mistakes = {
    "correction-bias-in-the-weights": Mistake(
        "weighs experts by the biased score instead of choosing by it only",
        overriding(Router, "forward", _biased_weights),
    ),
    "correction-bias-ignored": Mistake(
        "chooses experts without e_score_correction_bias",
        editing(Router, lambda router: router.e_score_correction_bias.zero_()),
    ),
    "router-without-output-multiplier": Mistake(
        "multiplies the head by output_multiplier and not the router", editing(Router, put(output_multiplier=1.0))
    ),
    "router-reads-softmax": Mistake(
        "scores experts by a softmax instead of sigmoids", overriding(Router, "forward", _softmax_scores)
    ),
    "expert-norm-after-the-weight": Mistake(
        "norms the weighted sum of the experts instead of each of them", overriding(Experts, "forward", _norm_last)
    ),
    "up-before-gate": Mistake("takes the first half of gate_up_proj for up", editing(Experts, _swap_halves)),
    "experts-transposed": Mistake("reads gate_up_proj as (E, in, out)", editing(Experts, _transpose)),
    "pre-expert-norm-plain": Mistake(
        "multiplies by the weight of pre_expert_norm instead of 1 + weight",
        editing(CenteredRMSNorm, add(-1.0), "pre_expert_norm"),
    ),
}

# The residual stream.


def _sum(self: ResidualGate, residual: Tensor, branch: Tensor) -> Tensor:
    return residual + branch


def _join_unnormed(self: DecoderLayer, hidden: Tensor, branch: Tensor) -> tuple[Tensor, Routing | None]:
    hidden = self.post_attention_residual_gate(hidden, branch)
    branch, routing = self.mlp(self.pre_feedforward_layernorm(hidden))
    return self.post_feedforward_residual_gate(hidden, self.post_feedforward_layernorm(branch)), routing


def _centred(self: InputScaledRMSNorm, x: Tensor) -> Tensor:
    return rms_norm(x, self.eps) * (1.0 + self.weight)


def _input_scaled(self: CenteredRMSNorm, x: Tensor) -> Tensor:
    return rms_norm(x * (1.0 + self.weight), self.eps)


SPARK: Mistakes = {
    **SHARED,
    **WINDOWS,
    **_TEXT,
    **_EXPERTS,
    **GRID_TOWER,
    "rope-theta-of-the-class": _theta(500_000.0),
    "no-norm-of-output-heads": Mistake(
        "leaves out the weightless norm of every head before the gate",
        overriding(Attention, "finish", GlimmerAttention.finish),
    ),
    "plain-residual-sum": Mistake("adds branches instead of gating them", overriding(ResidualGate, "forward", _sum)),
    "gate-temperature-ignored": Mistake(
        "does not divide gates by residual_gate_temperature", editing(ResidualGate, put(temperature=1.0))
    ),
    "gate-not-clamped": Mistake("lets alpha² fall below 0.001", editing(ResidualGate, put(SMALLEST_ALPHA_SQUARED=0.0))),
    "no-norm-after-attention": Mistake(
        "leaves out post_attention_layernorm because it has no tensor", overriding(DecoderLayer, "join", _join_unnormed)
    ),
    "norm-after-feedforward-centred": Mistake(
        "applies the weight of post_feedforward_layernorm after the norm, not before",
        overriding(InputScaledRMSNorm, "forward", _centred, "post_feedforward_layernorm"),
    ),
    "position-table-straight": table_order("ij", "reads the position table in reading order, as for Muse Glimmer"),
}

GLIMMER: Mistakes = {
    **SHARED,
    **WINDOWS,
    **_TEXT,
    **GRID_TOWER,
    "rope-theta-of-the-class": _theta(10_000.0),
    "output-heads-normed-as-in-spark": Mistake(
        "norms the output heads, as Muse Spark does", overriding(Attention, "finish", Attention.finish)
    ),
    "norms-after-branches-scale-their-input": Mistake(
        "applies the weights of the norms after the branches before the norm, as in Muse Spark",
        overriding(CenteredRMSNorm, "forward", _input_scaled, ("attention_layernorm", "post_feedforward_layernorm")),
    ),
    "norms-after-branches-plain": Mistake(
        "multiplies by the weights of the norms after the branches instead of 1 + weight",
        both(
            editing(CenteredRMSNorm, add(-1.0), "post_attention_layernorm"),
            editing(CenteredRMSNorm, add(-1.0), "post_feedforward_layernorm"),
        ),
    ),
    "up-before-gate": Mistake("takes gate_proj for up_proj", swap_dense),
    "position-table-scrambled": table_order("xy", "reads the position table with swapped axes, as for Muse Spark"),
}
