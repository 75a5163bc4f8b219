"""Random image towers of the three families, pictures for them, and the features that torch computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from musespark.chat.images import PatchedImage
from musespark.model.config import ModelConfig
from musespark.model.network import Network
from tests.model.network.builders import picture, random_config, random_network
from tests.model.network.families import glimmer_config, llama4_config, random_glimmer, random_llama4, tile

BUILDERS: dict[str, tuple[Callable[..., ModelConfig], Callable[..., Network]]] = {
    "muse_spark": (random_config, random_network),
    "muse_glimmer": (glimmer_config, random_glimmer),
    "llama4": (llama4_config, random_llama4),
}
FAMILIES = tuple(BUILDERS)


def random_tower(family: str, seed: int, **vision: Any) -> Network:
    """A network of random sizes; `vision` changes fields of its tower."""
    config_of, network_of = BUILDERS[family]
    config = config_of(seed)
    name = "tile_vision" if family == "llama4" else "vision"
    return network_of(replace(config, **{name: replace(getattr(config, name), **vision)}), seed)


def images_for(network: Network, seed: int = 0) -> list[PatchedImage]:
    """Two images of different grids, mostly not square, one larger than the position table; or two tiles."""
    if network.config.tile_vision is not None:
        return [tile(network.config, seed), tile(network.config, seed + 1)]
    r = np.random.default_rng(seed)
    small = picture(2 * int(r.integers(1, 4)), 2 * int(r.integers(1, 4)), seed)
    large = picture(2 * int(r.integers(5, 9)), 2 * int(r.integers(1, 9)), seed + 1)
    return [small, large]


@torch.no_grad()
def reference_features(network: Network, images: Sequence[PatchedImage]) -> list[np.ndarray]:
    return [network.encode_images([image])[0].numpy() for image in images]
