"""The image tower as the native core is told of it: which of two kinds it is, and its shape.

A tower of the Muse families takes an image of any grid of patches; Llama 4's takes square tiles, each of which is an
image here. The towers themselves are csrc/vision_grid.cpp and csrc/vision_tiles.cpp.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from musespark.chat.images import CELL_SIZE, PATCH_SIZE
from musespark.engine.rotary import rotary_frequencies
from musespark.errors import ConfigError
from musespark.model.config import ModelConfig, VisionConfig


def native_tower(config: ModelConfig) -> dict[str, Any] | None:
    """What csrc/bindings_vision.cpp reads; None for a text model. Raises ConfigError for patches of another size."""
    tower = config.image_tower
    if tower is None:
        return None
    if (tower.patch_size, tower.merge_size) != (PATCH_SIZE, CELL_SIZE // PATCH_SIZE):
        raise ConfigError(
            f"vision_config: patches of {tower.patch_size} pixels, merged {tower.merge_size} x {tower.merge_size}; "
            f"images are cut into patches of {PATCH_SIZE} pixels, merged 2 x 2"
        )
    half = tower.hidden_size // tower.num_attention_heads // 2
    shape = asdict(tower) | {
        "projector_hidden_size": config.projector_hidden_size,
        "rotary_frequencies": rotary_frequencies(half, tower.rope_theta).tolist(),
    }
    if isinstance(tower, VisionConfig):
        return shape | {
            "kind": "grid",
            "window": tower.window,
            "swapped_axes": tower.pos_emb_order == "xy",
            "full_attention": [kind == "full_attention" for kind in tower.layer_types],
        }
    return shape | {"kind": "tiles", "side": tower.side}
