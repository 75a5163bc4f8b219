"""Llama 4's images: a canvas of up to 16 tiles of 336 x 336 pixels, and the whole image once more as one tile, last.

The rules are those of the published processor (transformers 5.23 `Llama4ImageProcessor`), on Pillow's bilinear filter.
To the network each tile is an image of its own, 24 x 24 patches that become 144 tokens, so a tile is a `PatchedImage`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from musespark.chat.image_files import MAX_SIDE
from musespark.chat.images import PATCH_SIZE, PatchedImage, check_images, cut_patches, decode_image
from musespark.errors import InvalidImage

TILE_SIDE = 336
MAX_TILES = 16
TOKENS_PER_TILE = (TILE_SIDE // PATCH_SIZE) ** 2 // 4


@dataclass(frozen=True, slots=True)
class TiledImage:
    """grid = (rows, columns) of tiles; `tiles` in row-major order, then the global one if there are several."""

    grid: tuple[int, int]
    tiles: tuple[PatchedImage, ...]


def load_tiles(files: Sequence[bytes]) -> tuple[TiledImage, ...]:
    """All images of one prompt. Raises InvalidImage for a bad one, too many, or too many pixels in all of them."""
    check_images(files)
    return tuple(tile_image(decode_image(data)) for data in files)


def plan_tiles(width: int, height: int) -> tuple[int, int]:
    """The (rows, columns) of tiles for an image of this many pixels.

    The canvas that enlarges it least, else the one that shrinks it least; of equal ones the smallest. Raises
    InvalidImage for a side outside 1 to 65,535 pixels.
    """
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InvalidImage(f"the image has {width} x {height} pixels; a side must have 1 to {MAX_SIDE:,}")
    # In float32, as published: which canvases count as equal depends on it.
    scales = np.minimum(_CANVASES[:, 1] / np.float32(width), _CANVASES[:, 0] / np.float32(height))
    enlarging = scales[scales >= 1]
    chosen = enlarging.min() if enlarging.size else scales.max()
    equal = [_GRIDS[i] for i in np.flatnonzero(scales == chosen)]
    return min(equal, key=lambda grid: grid[0] * grid[1])  # the first of the smallest


def count_tile_tokens(width: int, height: int) -> int:
    """Tokens of the prompt that an image of this many pixels takes, separators and markers included."""
    rows, columns = plan_tiles(width, height)
    markers = 3  # start, `<|image|>` before the global tile, end
    if rows * columns == 1:
        return TOKENS_PER_TILE + markers
    return rows * columns * (TOKENS_PER_TILE + 1) + TOKENS_PER_TILE + markers  # a separator behind every tile


def tile_image(image: Image.Image) -> TiledImage:
    """Fit an upright RGB image onto its canvas and cut that into tiles."""
    assert image.mode == "RGB", image.mode
    rows, columns = plan_tiles(*image.size)
    canvas = Image.new("RGB", (columns * TILE_SIDE, rows * TILE_SIDE))
    canvas.paste(image.resize(fitted_size(*image.size), Image.Resampling.BILINEAR))
    tiles = [
        canvas.crop((x, y, x + TILE_SIDE, y + TILE_SIDE))
        for y in range(0, canvas.height, TILE_SIDE)
        for x in range(0, canvas.width, TILE_SIDE)
    ]
    if len(tiles) > 1:
        tiles.append(image.resize((TILE_SIDE, TILE_SIDE), Image.Resampling.BILINEAR))
    return TiledImage((rows, columns), tuple(_tile(np.asarray(tile)) for tile in tiles))


def fitted_size(width: int, height: int) -> tuple[int, int]:
    """The (width, height) that the image has on its canvas: its shape kept, small ones enlarged to one tile at most."""
    rows, columns = plan_tiles(width, height)
    most_height = min(max(height, TILE_SIDE), rows * TILE_SIDE)
    most_width = min(max(width, TILE_SIDE), columns * TILE_SIDE)
    across, down = most_width / width, most_height / height
    if across < down:
        size = most_width, min(math.floor(height * across), most_height)
    else:
        size = min(math.floor(width * down), most_width), most_height
    return max(size[0], 1), max(size[1], 1)


def _tile(pixels: np.ndarray) -> PatchedImage:
    side = TILE_SIDE // PATCH_SIZE
    digest = hashlib.sha256(b"RGB tile " + pixels.tobytes()).digest()
    return PatchedImage(_NORMALIZED[cut_patches(pixels)], (side, side), digest)


def _supported_grids() -> list[tuple[int, int]]:
    """All (rows, columns) of at most MAX_TILES tiles, in the published order, which decides between equals.

    From the most tiles to one, grids of the same shape side by side.
    """
    by_shape: dict[float, list[tuple[int, int]]] = {}
    for count in range(MAX_TILES, 0, -1):
        for rows in range(1, count + 1):
            if count % rows == 0:
                by_shape.setdefault(rows / (count // rows), []).append((rows, count // rows))
    return [grid for grids in by_shape.values() for grid in grids]


def _normalized() -> np.ndarray:
    """(x / 255 - 0.5) / 0.5 of every byte, rounded to bfloat16 after each operation, as published."""
    scaled = _to_bfloat16(np.arange(256, dtype=np.float32) * np.float32(1 / 255))
    return _to_bfloat16(_to_bfloat16(scaled - np.float32(0.5)) / np.float32(0.5))


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16, ties to even; still stored as float32."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


_GRIDS = _supported_grids()
_CANVASES = np.array(_GRIDS, dtype=np.float32) * TILE_SIDE  # (height, width) of each
_NORMALIZED = _normalized()
