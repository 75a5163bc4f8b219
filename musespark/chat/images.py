"""Images to patches: decode, set upright, put on white, resize to a grid of 28-pixel cells, cut into 14-pixel patches.

The arithmetic is that of the published processor (transformers 5.23 `MuseGlimmerImageProcessor`, which Muse Spark
shares), on Pillow's LANCZOS filter over 8-bit pixels. An image costs one token per cell, and two for its markers; every
room that counts image tokens counts them here.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401  (registers them)

from musespark.chat.image_files import MAX_SIDE, read_header
from musespark.errors import InvalidImage

PATCH_SIZE = 14
CELL_SIZE = 28  # 2 x 2 patches become one token
MAX_IMAGE_TOKENS = 4096
MAX_IMAGES = 16  # in one prompt; 38 MB of patches each at the most
MAX_TOTAL_PIXELS = 100_000_000  # of all images of one prompt, before resizing

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NORMALIZED = (np.arange(256, dtype=np.float32) - 127.5) / np.float32(
    127.5
)  # (x/255 - mean) / std with mean = std = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class PatchedImage:
    """One image as the network takes it.

    patches (rows * columns, 588) float32 in [-1, 1]: the patch grid in raster order, each patch flattened (c, y, x).
    grid = (rows, columns) in patches, both even. Two images with the same digest are the same to the network: it is the
    sha256 of mode, size and pixels after decoding and resizing.
    """

    patches: np.ndarray
    grid: tuple[int, int]
    digest: bytes

    @property
    def num_tokens(self) -> int:
        """Rows of the prompt that carry this image, without its start and end markers."""
        return self.grid[0] * self.grid[1] // 4


def plan_grid(width: int, height: int) -> tuple[int, int]:
    """The (rows, columns) of 28-pixel cells that an image of this many pixels is resized to.

    The grid nearest in shape among the ones around the true size, at most MAX_IMAGE_TOKENS cells. Raises InvalidImage
    for a side outside 1 to 65,535 pixels.
    """
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InvalidImage(f"the image has {width} x {height} pixels; a side must have 1 to {MAX_SIDE:,}")
    rows, columns = height / CELL_SIZE, width / CELL_SIZE
    if rows * columns > MAX_IMAGE_TOKENS:
        ratio = columns / rows
        rows = (MAX_IMAGE_TOKENS / ratio) ** 0.5
        columns = rows * ratio
    around = itertools.product((math.floor(rows), math.ceil(rows)), (math.floor(columns), math.ceil(columns)))
    # A set on purpose: when two grids are equally near, as for every square image, the published code takes the one
    # that comes first in CPython's order of this set, and the model was trained so.
    grids = [(r, c) for r, c in set(around) if r >= 1 and c >= 1 and r * c <= MAX_IMAGE_TOKENS]
    return min(grids, key=lambda grid: abs(grid[0] / grid[1] - height / width))


def load_images(files: Sequence[bytes]) -> tuple[PatchedImage, ...]:
    """All images of one prompt. Raises InvalidImage for too many, too many pixels in all of them, or a bad one, whose
    `index` it has.
    """
    check_images(files)
    images = []
    for index, data in enumerate(files):
        try:
            images.append(load_image(data))
        except InvalidImage as error:
            error.index = index
            raise
    return tuple(images)


def check_images(files: Sequence[bytes]) -> None:
    """What the headers of a prompt's images ask for, before any is decoded. Raises InvalidImage."""
    if len(files) > MAX_IMAGES:
        raise InvalidImage(f"the conversation has {len(files):,} images; the limit is {MAX_IMAGES}")
    headers = [read_header(data) for data in files]
    num_pixels = sum(header.width * header.height for header in headers)
    if num_pixels > MAX_TOTAL_PIXELS:
        raise InvalidImage(f"the images have {num_pixels:,} pixels together; the limit is {MAX_TOTAL_PIXELS:,}")


def load_image(data: bytes) -> PatchedImage:
    """The patches of one PNG, JPEG, WebP or GIF file. Raises InvalidImage."""
    return patch_image(decode_image(data))


def decode_image(data: bytes) -> Image.Image:
    """The upright RGB pixels of one file (the first frame of an animation). Raises InvalidImage."""
    header = read_header(data)
    try:
        with Image.open(io.BytesIO(data), formats=[header.format]) as opened:
            if opened.size != (header.width, header.height):
                raise InvalidImage(f"the {header.format} file is damaged: it says two sizes")
            opened.load()
            return _turn_upright(_to_rgb(opened), _orientation(opened))
    except InvalidImage:
        raise
    except Exception:
        # Pillow's decoders raise whatever the damage leads to (OSError, ValueError, SyntaxError, struct.error, …), with
        # texts that quote object addresses; none of it helps the sender.
        raise InvalidImage(f"the {header.format} file can't be decoded: it is damaged or truncated") from None


def patch_image(image: Image.Image) -> PatchedImage:
    """Resize an upright RGB image and cut it into patches."""
    assert image.mode == "RGB", image.mode
    rows, columns = plan_grid(*image.size)
    size = (columns * CELL_SIZE, rows * CELL_SIZE)
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS))  # (y, x, c) uint8
    digest = hashlib.sha256(f"RGB {size[0]}x{size[1]} ".encode())
    digest.update(pixels.tobytes())
    grid = (2 * rows, 2 * columns)
    return PatchedImage(_NORMALIZED[cut_patches(pixels)], grid, digest.digest())


def cut_patches(pixels: np.ndarray) -> np.ndarray:
    """pixels (y, x, c), sides multiples of 14, as (rows * columns, 588): raster order, each flattened (c, y, x)."""
    rows, columns = pixels.shape[0] // PATCH_SIZE, pixels.shape[1] // PATCH_SIZE
    cut = pixels.reshape(rows, PATCH_SIZE, columns, PATCH_SIZE, 3)
    return cut.transpose(0, 2, 4, 1, 3).reshape(rows * columns, 3 * PATCH_SIZE * PATCH_SIZE)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of the four formats as 8-bit RGB, transparency put on white. Colour profiles are not applied."""
    transparency = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it instead of scaling
        deep = np.asarray(image)
        shade = (deep >> 8).astype(np.uint8)
        if isinstance(transparency, int):
            shade[deep == transparency] = 255
        return Image.fromarray(shade).convert("RGB")
    if isinstance(transparency, tuple) and max(transparency) > 255:
        # The colour key of a 16-bit PNG, whose pixels Pillow has cut to their high bytes.
        image.info["transparency"] = tuple(value >> 8 for value in transparency)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none, or broken metadata, which is no reason to refuse a photo."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # as many kinds as there are ways to damage a TIFF directory
        return 1


def _turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
