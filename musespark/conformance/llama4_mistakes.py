"""Mistakes in llama4: the text stack. Those of its image tower are in `vision_mistakes.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from musespark.conformance.mistakes import (
    SHARED,
    Mistake,
    Mistakes,
    both,
    editing,
    overriding,
    put,
    swap_dense,
    with_text,
)
from musespark.conformance.vision_mistakes import TILE_TOWER
from musespark.model.config import TextConfig
from musespark.model.network.layers import rms_norm, rotate, rotate_neighbours
from musespark.model.network.llama4 import Llama4Attention, Llama4Experts, Llama4MoE, Llama4Router, Llama4TextModel
from musespark.model.network.moe import Routing


def _kinds(text: TextConfig, **names: str) -> dict[str, Any]:
    return {"layer_types": tuple(names.get(kind, kind) for kind in text.layer_types)}


def _windowed(text: TextConfig) -> dict[str, Any]:
    return {"sliding_window": text.attention_chunk_size} | _kinds(text, chunked_attention="sliding_attention")


def _scaling(text: TextConfig) -> dict[str, Any]:
    assert text.rope_scaling is not None
    return {"rope_scaling": replace(text.rope_scaling, factor=8.0, high_freq_factor=4.0)}


def _project(self: Llama4Attention, hidden: Tensor, rotary: Any, turn: Any, norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = self.heads(hidden)
    cos, sin, temperature = rotary
    if self.uses_rope:
        q, k = turn(q, cos, sin), turn(k, cos, sin)
    if self.norms_qk:
        q, k = norm(q, self.eps), norm(k, self.eps)
    return (q * temperature if self.tunes_temperature else q), k, v


def _project_halves(self: Llama4Attention, hidden: Tensor, rotary: Any) -> Any:
    return _project(self, hidden, rotary, rotate, rms_norm)


def _project_norm_of_all(self: Llama4Attention, hidden: Tensor, rotary: Any) -> Any:
    return _project(self, hidden, rotary, rotate_neighbours, _norm_of_all)


def _norm_of_all(x: Tensor, eps: float) -> Tensor:
    """x (B, H, T, d): one norm for all heads of a token."""
    return x * torch.rsqrt(x.pow(2).mean((1, 3), keepdim=True) + eps)


def _late(self: Llama4TextModel, positions: Tensor) -> Any:
    cos, sin, _ = Llama4TextModel.rotary(self, positions)
    return cos, sin, Llama4TextModel.rotary(self, positions - 1)[2]


def _score_behind(self: Llama4Experts, hidden: Tensor, routing: Routing) -> Tensor:
    out = torch.zeros_like(hidden)
    for e in range(self.down_proj.shape[0]):
        rows, slots = torch.where(routing.indices == e)
        gate, up = (hidden[rows] @ self.gate_up_proj[e]).chunk(2, dim=-1)
        said = (F.silu(gate) * up) @ self.down_proj[e]
        out = out.index_add(0, rows, said * routing.weights[rows, slots, None])
    return out


def _softmax(self: Llama4Router, hidden: Tensor) -> Routing:
    right = Llama4Router.route(self, hidden)
    return right._replace(weights=right.logits.softmax(-1).gather(1, right.indices))


def _swap_halves(experts: Llama4Experts) -> None:
    gate, up = experts.gate_up_proj.chunk(2, dim=2)
    experts.gate_up_proj.copy_(torch.cat((up, gate), dim=2))


def _transpose(experts: Llama4Experts) -> None:
    experts.gate_up_proj.copy_(experts.gate_up_proj.transpose(1, 2).clone())


def _norm_where_rope(attention: Llama4Attention) -> None:
    attention.norms_qk = attention.uses_rope


LLAMA4: Mistakes = {
    **SHARED,
    **TILE_TOWER,
    "chunk-as-window": Mistake(
        "takes a chunk for a sliding window: it sees as many keys, from before the chunk", with_text(_windowed)
    ),
    "chunk-one-too-long": Mistake(
        "starts chunks at multiples of attention_chunk_size + 1",
        with_text(lambda text: {"attention_chunk_size": text.attention_chunk_size + 1}),
    ),
    "no-chunk": Mistake(
        "lets chunked layers see everything", with_text(lambda text: _kinds(text, chunked_attention="full_attention"))
    ),
    "chunk-on-the-other-layers": Mistake(
        "chunks the layers without rotary embedding and lets the others see everything",
        with_text(lambda t: _kinds(t, chunked_attention="full_attention", full_attention="chunked_attention")),
    ),
    "rope-flags-inverted": Mistake(
        "takes no_rope_layers by its name: 1 for a layer without rotary embedding",
        with_text(lambda text: {"layer_uses_rope": tuple(not used for used in text.layer_uses_rope)}),
    ),
    "rope-of-halves": Mistake(
        "turns halves (i, i + d/2) instead of pairs of neighbours (2i, 2i + 1)",
        overriding(Llama4Attention, "project", _project_halves),
    ),
    "rope-scaling-ignored": Mistake("does not scale frequencies", with_text(lambda _: {"rope_scaling": None})),
    "rope-scaling-8-and-4": Mistake(
        "scales by factor 8 with high_freq_factor 4, as in early uploads of Scout, and mixes instead of stepping",
        with_text(_scaling),
    ),
    "no-qk-norm": Mistake("ignores use_qk_norm: true", editing(Llama4Attention, put(norms_qk=False))),
    "qk-norm-forced": Mistake("norms heads where use_qk_norm is false", editing(Llama4Attention, _norm_where_rope)),
    "qk-norm-over-all-heads": Mistake(
        "norms all heads of a token together", overriding(Llama4Attention, "project", _project_norm_of_all)
    ),
    "qk-norm-on-full-layers": Mistake(
        "norms heads in the layers without rotary embedding too", editing(Llama4Attention, put(norms_qk=True))
    ),
    "no-temperature": Mistake(
        "leaves out the temperature of queries, or takes the integer 4 for false",
        editing(Llama4Attention, put(tunes_temperature=False)),
    ),
    "temperature-one-position-late": Mistake(
        "takes floor(position / floor_scale) instead of floor((position + 1) / floor_scale)",
        overriding(Llama4TextModel, "rotary", _late),
    ),
    "temperature-on-every-layer": Mistake(
        "tunes the layers with rotary embedding too", editing(Llama4Attention, put(tunes_temperature=True))
    ),
    "score-on-the-output": Mistake(
        "multiplies what an expert says by its score instead of what it reads",
        overriding(Llama4Experts, "forward", _score_behind),
    ),
    "score-from-softmax": Mistake(
        "takes a softmax over experts for the score instead of a sigmoid", overriding(Llama4Router, "route", _softmax)
    ),
    "no-shared-expert": Mistake(
        "leaves out the shared expert", editing(Llama4MoE, lambda moe: moe.shared_expert.down_proj.weight.zero_())
    ),
    "up-before-gate": Mistake(
        "takes the first half of gate_up_proj for up", both(swap_dense, editing(Llama4Experts, _swap_halves))
    ),
    "experts-transposed": Mistake("reads gate_up_proj as (E, out, in)", editing(Llama4Experts, _transpose)),
}
