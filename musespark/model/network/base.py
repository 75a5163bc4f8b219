"""Network: what the models of all families do alike, from token ids and images to logits.

The readable reference: what transformers computes for the same checkpoint, in float32 to rounding. Training owns its
weights and differentiates it, or a faster twin held equal to it; serving does not come here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from musespark.model.config import ModelConfig
from musespark.model.network.layers import Linear
from musespark.model.network.moe import Routing
from musespark.model.network.text import KVCache, TextModel

if TYPE_CHECKING:
    from musespark.chat.images import PatchedImage


class Network(nn.Module):
    """Text stack, image tower and head in one module with Hugging Face parameter names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def text_model(self) -> TextModel:
        """Embedding to final norm."""
        raise NotImplementedError

    @property
    def head(self) -> Linear:
        raise NotImplementedError

    def encode_images(self, images: Sequence[PatchedImage]) -> list[Tensor]:
        """Features (num_tokens, D) float32 of each image, as they replace embeddings of text."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """The head on rows of `hidden_states`: (…, D) -> (…, V) float32."""
        raise NotImplementedError

    def init_weights(self, seed: int | None = None) -> None:
        """Fresh weights for training; the same seed gives the same weights."""
        raise NotImplementedError

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
        return self.text_model(hidden, cache=cache, positions=positions, segments=segments)

    def embed(self, token_ids: Tensor, images: Sequence[PatchedImage | Tensor] = ()) -> Tensor:
        """Input rows of the first layer, (B, T, D) float32: text embeddings, with image features in their places."""
        hidden = self.text_model.embed(token_ids)
        if self.config.vision is None and self.config.tile_vision is None:
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

    def _features(self, images: Sequence[PatchedImage | Tensor]) -> Tensor | None:
        if not images:
            return None
        pictures = [image for image in images if not isinstance(image, Tensor)]
        encoded = iter(self.encode_images(pictures) if pictures else ())
        return torch.cat([image.float() if isinstance(image, Tensor) else next(encoded) for image in images])
