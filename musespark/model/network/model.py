"""MuseSpark: text stack, image tower and head in one module with Hugging Face parameter names.

The readable reference: what transformers computes for `MuseSparkForConditionalGeneration`, in float32 to rounding.
Training owns its weights and differentiates it, or a faster twin held equal to it; serving does not come here.
`generate_greedy` is the naive loop that the engine is held against.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from musespark.model.config import ModelConfig
from musespark.model.network.layers import Linear
from musespark.model.network.moe import Routing
from musespark.model.network.text import KVCache, TextModel
from musespark.model.network.vision import VisionAdapter, VisionTower, perception_norm

if TYPE_CHECKING:
    from musespark.chat.images import PatchedImage

# beta 0.27, alpha 0.96: every layer starts as a small step. A zero-initialised o_proj would not do the same: the norm
# after it would blow its gradient up.
INITIAL_RESIDUAL_GATE = -0.3


class MuseSparkModel(nn.Module):
    """Everything but the head; exists for the `model.` prefix of the parameter names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.language_model = TextModel(config.text)
        if config.vision is not None:
            self.vision_tower = VisionTower(config.vision)
            self.vision_adapter = VisionAdapter(config, config.vision.merged_size)
            self.vision_projection = Linear(config.projector_hidden_size, config.text.hidden_size, bias=False)


class MuseSpark(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = MuseSparkModel(config)
        self.lm_head = Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        if not self.lm_head.weight.is_meta:
            self.init_weights()

    def forward(
        self,
        token_ids: Tensor,
        *,
        images: Sequence[PatchedImage | Tensor] = (),
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """token_ids (B, T) int64 -> logits (B, T, V) float32. The arguments are those of `hidden_states`."""
        hidden, _ = self.hidden_states(token_ids, images=images, cache=cache, positions=positions, segments=segments)
        return self.logits(hidden)

    def hidden_states(
        self,
        token_ids: Tensor,
        *,
        images: Sequence[PatchedImage | Tensor] = (),
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """What the head reads, (B, T, D) float32, and the routing of every sparse layer, in layer order.

        A training loss can take the logits in chunks of this. images: pictures, or features (num_tokens, D) that
        `encode_images` gave; they fill the rows of the image token in reading order, row 0 of the batch first.
        positions, segments: see `TextModel.forward`. Raises ValueError if features and image tokens differ in number.
        """
        hidden = self.embed(token_ids, images)
        return self.model.language_model(hidden, cache=cache, positions=positions, segments=segments)

    def embed(self, token_ids: Tensor, images: Sequence[PatchedImage | Tensor] = ()) -> Tensor:
        """Input rows of the first layer, (B, T, D) float32: text embeddings, with image features in their places."""
        hidden = self.model.language_model.embed(token_ids)
        if self.config.vision is None:
            if images:
                raise ValueError("this checkpoint has no vision tower, so it takes no images")
            return hidden
        if not images and torch.compiler.is_compiling():
            return hidden  # counting image tokens would break the graph
        is_image = token_ids == self.config.image_token_id
        num_rows = int(is_image.sum())
        features = self._features(images)
        num_features = 0 if features is None else features.shape[0]
        if num_rows != num_features:
            raise ValueError(f"{num_rows} image tokens for {num_features} image features; the numbers must be equal")
        return hidden if features is None else hidden.masked_scatter(is_image[..., None], features)

    def encode_images(self, images: Sequence[PatchedImage]) -> list[Tensor]:
        """Features (num_tokens, D) float32 of each image, of unit mean square."""
        device = self.lm_head.weight.device
        patches = torch.cat([torch.as_tensor(image.patches, device=device) for image in images])
        merged = self.model.vision_tower(patches, [image.grid for image in images])
        projected = self.model.vision_projection(self.model.vision_adapter(merged))
        features = perception_norm(projected, self.config.text.rms_norm_eps)
        return list(features.split([image.num_tokens for image in images]))

    def _features(self, images: Sequence[PatchedImage | Tensor]) -> Tensor | None:
        if not images:
            return None
        pictures = [image for image in images if not isinstance(image, Tensor)]
        encoded = iter(self.encode_images(pictures) if pictures else ())
        return torch.cat([image.float() if isinstance(image, Tensor) else next(encoded) for image in images])

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


def load_network(folder: Path) -> MuseSpark:
    """The network of a checkpoint folder in float32, quantised weights expanded. Raises CheckpointError."""
    from musespark.model.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    with torch.device("meta"):
        network = MuseSpark(checkpoint.config)
    tensors = {name: torch.from_numpy(checkpoint.weight(name).float32().copy()) for name in network.state_dict()}
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval()


@torch.no_grad()
def generate_greedy(
    network: MuseSpark,
    token_ids: Sequence[int],
    images: Sequence[PatchedImage] = (),
    *,
    max_tokens: int,
    stop_ids: Collection[int] = (),
) -> list[int]:
    """The naive loop: the whole sequence again for every token, no cache. Returns the new tokens, with the stop id."""
    features = network.encode_images(images) if images else []
    sequence, num_prompt = list(token_ids), len(token_ids)
    for _ in range(max_tokens):
        row = torch.tensor([sequence], device=network.lm_head.weight.device)
        hidden, _ = network.hidden_states(row, images=features)
        sequence.append(int(network.logits(hidden[0, -1]).argmax()))
        if sequence[-1] in stop_ids:
            break
    return sequence[num_prompt:]
