"""Pictures as training sees them: a little turned, scaled, moved, lighter or darker each time.

A few thousand small pictures are soon known by heart; varied ones teach what they show.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from musespark.chat.images import PATCH_SIZE, PatchedImage, patch_image

MAX_TURN_DEG = 10.0
SCALES = (0.75, 1.1)
MAX_STRETCH = 0.1  # of width against height
MAX_SHIFT = 4  # pixels beyond where the scaled picture still fits
CONTRASTS = (0.85, 1.1)
MAX_LIGHT = 10.0  # grey levels


def vary(image: PatchedImage, rng: np.random.Generator) -> PatchedImage:
    """The same picture seen a little differently, on a background like its corner; the grid stays."""
    pixels = pixels_of(image)
    height, width, _ = pixels.shape
    background = tuple(int(level) for level in pixels[0, 0])
    turned = Image.fromarray(pixels).rotate(
        rng.uniform(-MAX_TURN_DEG, MAX_TURN_DEG), Image.Resampling.BILINEAR, fillcolor=background
    )
    scale = rng.uniform(*SCALES)
    sides = [max(1, round(side * scale * rng.uniform(1 - MAX_STRETCH, 1 + MAX_STRETCH))) for side in (width, height)]
    canvas = Image.new("RGB", (width, height), background)
    room = (width - sides[0], height - sides[1])
    left, top = (int(rng.integers(min(0, free) - MAX_SHIFT, max(0, free) + MAX_SHIFT + 1)) for free in room)
    canvas.paste(turned.resize((sides[0], sides[1]), Image.Resampling.BILINEAR), (left, top))
    levels = (np.asarray(canvas) - 127.5) * rng.uniform(*CONTRASTS) + 127.5 + rng.uniform(-MAX_LIGHT, MAX_LIGHT)
    return patch_image(Image.fromarray(levels.round().clip(0, 255).astype(np.uint8)))


def pixels_of(image: PatchedImage) -> np.ndarray:
    """(height, width, 3) uint8: the pixels that the patches were cut from."""
    rows, columns = image.grid
    cut = image.patches.reshape(rows, columns, 3, PATCH_SIZE, PATCH_SIZE)
    levels = cut.transpose(0, 3, 1, 4, 2).reshape(rows * PATCH_SIZE, columns * PATCH_SIZE, 3)
    pixels: np.ndarray = ((levels + 1) * 127.5).round().astype(np.uint8)
    return pixels
