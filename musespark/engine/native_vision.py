"""The image tower as the native core is told of it: which of two kinds it is, and its shape.

A tower of the Muse families takes an image of any grid of patches; Llama 4's takes square tiles, each of which is an
image here. The towers themselves are csrc/vision_grid.cpp and csrc/vision_tiles.cpp.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from musespark.chat.images import CELL_SIZE, PATCH_SIZE
from musespark.engine.rotary import rotary_frequencies
from musespark.errors import ConfigError
from musespark.model.config import ModelConfig, VisionConfig

if TYPE_CHECKING:
    from musespark.engine import _native
    from musespark.engine.native import NativeRunner
    from musespark.engine.runner import Float32


class NativeEncoding:
    """An image on its way through the tower, in as many pieces as wanted; the features are the same bits in any case.

    It owns the image's rows, keys and values until it is dropped, which also abandons it.
    """

    def __init__(self, runner: NativeRunner, started: _native.StartedImage, features: Float32) -> None:
        self._runner = runner
        self._started = started
        self._features = features

    @property
    def progress(self) -> float:
        """The share of the work that is done, from 0 to 1."""
        return self._started.progress

    def run(self, budget_s: float | None = None) -> Float32 | None:
        """Work for about `budget_s` seconds, one unit at least; without a budget, to the end.

        A unit is about ten milliseconds of two cores. Returns the features (num_tokens, D) if they are done. Raises
        EngineFailed after the runner is closed.
        """
        done = self._runner.continue_image(self._started, math.inf if budget_s is None else budget_s)
        return self._features if done else None


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
