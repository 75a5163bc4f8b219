"""muse_glimmer: dense layers with plain residual sums, weights in the norms after each branch, no norm of heads.

Everything else is Muse Spark's, the image tower and the head included. Source: transformers 5.23 `muse_glimmer`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from musespark.model.config import TextConfig
from musespark.model.network.layers import CenteredRMSNorm
from musespark.model.network.model import MuseSpark
from musespark.model.network.moe import DenseMLP
from musespark.model.network.text import Attention, Layer, TextModel


class GlimmerAttention(Attention):
    def finish(self, hidden: Tensor, heads: Tensor) -> Tensor:
        return self.o_proj(heads.flatten(2).float() * torch.sigmoid(self.gate_proj(hidden).float()))


class GlimmerLayer(Layer):
    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.input_layernorm = CenteredRMSNorm(width, config.rms_norm_eps)
        self.self_attn = GlimmerAttention(config, layer)
        self.post_attention_layernorm = CenteredRMSNorm(width, config.post_norm_eps)
        self.pre_feedforward_layernorm = CenteredRMSNorm(width, config.rms_norm_eps)
        self.mlp = DenseMLP(width, config.intermediate_size)
        self.post_feedforward_layernorm = CenteredRMSNorm(width, config.post_norm_eps)

    def join(self, hidden: Tensor, branch: Tensor) -> tuple[Tensor, None]:
        hidden = hidden + self.post_attention_layernorm(branch)
        branch, _ = self.mlp(self.pre_feedforward_layernorm(hidden))
        return hidden + self.post_feedforward_layernorm(branch), None


class GlimmerTextModel(TextModel):
    layer_class = GlimmerLayer


class MuseGlimmer(MuseSpark):
    text_class = GlimmerTextModel
