"""MuseSpark: text stack, image tower and head in one module with Hugging Face parameter names.

What transformers computes for `MuseSparkForConditionalGeneration`, in float32 to rounding. `glimmer.py` makes the other
Muse family of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from musespark.model.config import ModelConfig, TextConfig
from musespark.model.network.base import Network
from musespark.model.network.layers import Linear
from musespark.model.network.text import TextModel
from musespark.model.network.vision import VisionAdapter, VisionTower, perception_norm

if TYPE_CHECKING:
    from musespark.chat.images import PatchedImage

# beta 0.27, alpha 0.96: every layer starts as a small step. A zero-initialised o_proj would not do the same: the norm
# after it would blow its gradient up.
INITIAL_RESIDUAL_GATE = -0.3


class MuseSparkModel(nn.Module):
    """Everything but the head; exists for the `model.` prefix of the parameter names."""

    def __init__(self, config: ModelConfig, text_class: Callable[[TextConfig], TextModel]) -> None:
        super().__init__()
        self.language_model = text_class(config.text)
        if config.vision is not None:
            self.vision_tower = VisionTower(config.vision)
            self.vision_adapter = VisionAdapter(config, config.vision.merged_size)
            self.vision_projection = Linear(config.projector_hidden_size, config.text.hidden_size, bias=False)


class MuseSpark(Network):
    text_class: Callable[[TextConfig], TextModel] = TextModel

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.model = MuseSparkModel(config, type(self).text_class)
        self.lm_head = Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        if not self.lm_head.weight.is_meta:
            self.init_weights()

    @property
    def text_model(self) -> TextModel:
        return self.model.language_model

    @property
    def head(self) -> Linear:
        return self.lm_head

    def encode_images(self, images: Sequence[PatchedImage]) -> list[Tensor]:
        """Features (num_tokens, D) float32 of each image, of unit mean square."""
        device = self.lm_head.weight.device
        patches = torch.cat([torch.as_tensor(image.patches, device=device) for image in images])
        merged = self.model.vision_tower(patches, [image.grid for image in images])
        projected = self.model.vision_projection(self.model.vision_adapter(merged))
        features = perception_norm(projected, self.config.text.rms_norm_eps)
        return list(features.split([image.num_tokens for image in images]))

    def logits(self, hidden: Tensor) -> Tensor:
        """The head on rows of `hidden_states`: (…, D) -> (…, V) float32, inside ±final_logit_softcapping."""
        cap = self.config.text.final_logit_softcapping
        return cap * torch.tanh(self.lm_head(hidden).float() * (self.config.text.output_multiplier / cap))

    @torch.no_grad()
    def init_weights(self, seed: int | None = None) -> None:
        """Fresh weights for training; the same seed gives the same weights.

        Matrices inside the layers start at 1/sqrt(fan-in), which keeps unit-mean-square rows at unit mean square;
        embeddings, head, router and the position table at `initializer_range`.
        """
        generator = None if seed is None else torch.Generator(self.lm_head.weight.device).manual_seed(seed)
        small = self.config.text.initializer_range
        for name, parameter in self.named_parameters():
            kind = name.rsplit(".", 1)[-1]
            if kind == "gate":
                parameter.fill_(INITIAL_RESIDUAL_GATE)
            elif kind == "bias":
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0 if "vision_tower" in name or name.endswith("language_model.norm.weight") else 0.0)
            elif any(part in name for part in ("embed_tokens", "lm_head", "mlp.gate.", "position_embedding_table")):
                parameter.normal_(std=small, generator=generator)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
        for name, buffer in self.named_buffers():
            assert name.endswith("e_score_correction_bias")
            buffer.zero_()
