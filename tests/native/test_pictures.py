"""Picture files through our pipeline and through the published one of transformers: the same features.

Ours: bytes, `chat.images` or `chat.tiles`, the native tower. Theirs: the published processor, the published model.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from musespark.chat.images import load_images
from musespark.chat.tiles import load_tiles
from musespark.model.network import Network
from tests.chat.image_samples import encoded, picture
from tests.chat.published_processors import published_pixels
from tests.model.network import builders, families
from tests.native.runners import native
from tests.native.towers import FAMILIES, random_tower


def photo(width: int, height: int) -> Image.Image:
    """Smooth shapes under the noise of a sensor."""
    smooth = np.asarray(picture(width, height, seed=1)).astype(np.float64)
    noise = np.random.default_rng(2).normal(0, 12, smooth.shape)
    return Image.fromarray((smooth + noise).round().clip(0, 255).astype(np.uint8))


PICTURES = {
    "a photo": photo(640, 480),
    "a square photo": photo(672, 672),
    "a large photo": photo(1500, 1100),
    "a panorama": photo(2400, 90),
    "a receipt": photo(60, 1900),
    "a line one pixel high": photo(700, 1),
    "a line one pixel wide": photo(1, 700),
    "a pixel": photo(1, 1),
    "a line too long for any grid": photo(3, 6000),
}


@pytest.fixture(scope="module", params=FAMILIES)
def network(request: pytest.FixtureRequest) -> Network:
    """A tower of the published patches, tiles, windows and positions, narrow and of three layers."""
    if request.param == "llama4":
        return random_tower("llama4", 1, num_hidden_layers=3, image_size=336)
    kinds = ("window_attention", "window_attention", "full_attention")
    return random_tower(request.param, 1, num_hidden_layers=3, layer_types=kinds, pos_emb_height=32, pos_emb_width=32)


@torch.no_grad()
def published_features(network: Network, image: Image.Image) -> np.ndarray:
    """(tokens, D) of the published processor and model, tile after tile for Llama 4."""
    family = network.config.model_type
    pixels = published_pixels(family, image)
    twin = (builders if family == "muse_spark" else families).twin(network, "sdpa")
    if family == "llama4":
        hidden = twin.get_image_features(**pixels).last_hidden_state
        features: torch.Tensor = twin.multi_modal_projector(hidden.flatten(0, 1))
    else:
        features = torch.cat(twin.model.get_image_features(**pixels).pooler_output)
    return features.numpy()


@pytest.mark.parametrize("name", PICTURES)
def test_features_of_picture_files_are_those_of_transformers(network: Network, name: str) -> None:
    file = encoded(PICTURES[name], "JPEG" if "photo" in name else "PNG")
    runner = native(network)
    tiled = network.config.tile_vision is not None
    images = load_tiles([file])[0].tiles if tiled else load_images([file])
    got = np.concatenate([runner.encode_image(image) for image in images])
    expected = published_features(network, Image.open(io.BytesIO(file)).convert("RGB"))
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 1e-4 * np.sqrt((expected**2).mean())
