"""What the drawn generators share: colours with names, a canvas in whole cells of 28 pixels, and the typeface.

Pillow carries one typeface of its own (Aileron Regular, public domain); size, colour, place and tilt vary.
"""

from __future__ import annotations

from functools import cache

from PIL import Image, ImageDraw, ImageFont

from musespark.chat.images import CELL_SIZE
from musespark.evals.generated.sample import Rng, pick

Colour = tuple[int, int, int]
COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "green": (44, 150, 60),
    "blue": (38, 84, 196),
    "yellow": (240, 200, 30),
    "orange": (240, 130, 20),
    "purple": (130, 50, 160),
    "black": (20, 20, 20),
    "pink": (240, 120, 170),
}
LIGHT: tuple[Colour, ...] = ((255, 255, 255), (245, 245, 240), (232, 238, 248), (250, 240, 225))
DARK: tuple[Colour, ...] = ((20, 20, 20), (30, 34, 60), (60, 20, 20), (10, 50, 40))


def canvas(columns: int, rows: int, background: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An image of so many cells, each of which becomes one token."""
    image = Image.new("RGB", (columns * CELL_SIZE, rows * CELL_SIZE), background)
    return image, ImageDraw.Draw(image)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def ink_and_paper(rng: Rng) -> tuple[Colour, Colour]:
    """Two colours that can be told apart, dark on light or light on dark."""
    light, dark = pick(LIGHT, rng), pick(DARK, rng)
    return (light, dark) if rng.random() < 0.25 else (dark, light)


def distinct_colours(count: int, rng: Rng) -> list[str]:
    names = list(COLOURS)
    return [names[int(i)] for i in rng.permutation(len(names))[:count]]


def speckle(image: Image.Image, rng: Rng, share: float = 0.01) -> None:
    """Set a share of the pixels to any grey, as dust would."""
    pixels = image.load()
    assert pixels is not None
    for _ in range(int(share * image.width * image.height)):
        level = int(rng.integers(256))
        pixels[int(rng.integers(image.width)), int(rng.integers(image.height))] = (level, level, level)
