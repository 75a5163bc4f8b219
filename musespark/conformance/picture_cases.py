"""The cases of pictures: patches of seeded pictures, and the grids and token counts of sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from musespark.chat.images import cut_patches, decode_image, patch_image, plan_grid
from musespark.chat.tiles import count_tile_tokens, fitted_size, plan_tiles, tile_image
from musespark.conformance.conversations import as_file
from musespark.conformance.seeded import make_picture
from musespark.conformance.suite import Answer, Arrays, Case, Family, Guard

# name -> (width, height, alpha)
PICTURES = {
    "wide": (90, 40, False),
    "tall": (33, 100, False),
    "square": (100, 100, False),
    "small": (20, 13, False),
    "clear": (70, 50, True),
    "landscape": (500, 250, False),
    "portrait": (200, 420, False),
}
SHOWN: dict[Family, tuple[str, ...]] = {
    "muse_spark": ("wide", "tall", "square", "small", "clear"),
    "muse_glimmer": ("wide", "tall", "square", "small", "clear"),
    "llama4": ("small", "clear", "landscape", "portrait"),
}
NUM_ROWS = 24  # patches of each picture that are compared
LEVEL = 1 / 127.5  # one step of an 8-bit colour
# Filters may round one level apart. Llama 4's published filter is torch's, a little away from Pillow's, and its values
# are rounded to bfloat16.
TOLERANCE: dict[Family, float] = {"muse_spark": 1.02 * LEVEL, "muse_glimmer": 1.02 * LEVEL, "llama4": 2.6 * LEVEL}

SIDES = (
    *(1, 27, 28, 29, 57, 60, 84, 85, 100, 112, 113, 150, 200, 224, 225, 256, 300, 335, 336, 337, 384, 400, 500, 512),
    *(600, 640, 672, 673, 720, 768, 800, 900, 1000, 1024, 1344, 1500, 1800, 3000),
)
SIZES = [
    *([side, side] for side in SIDES),
    *([640, 480], [480, 640], [1024, 768], [1920, 1080], [4000, 3000], [5000, 30], [30, 5000], [1, 65_535]),
    *([337, 336], [336, 337], [672, 336], [1008, 336], [1344, 336], [1345, 336], [700, 350], [350, 700]),
]
_SAYS = {
    "bicubic": "resizes with a bicubic filter",
    "bgr": "takes blue for red",
    "channel-last": "flattens a patch as (y, x, channel) instead of (channel, y, x)",
    "alpha-dropped": "drops transparency instead of putting it on white",
    "stretched": "stretches a picture over its canvas instead of keeping its shape",
}


def make_pictures(seed: int) -> Arrays:
    return {name: make_picture(seed, name, w, h, alpha=alpha) for name, (w, h, alpha) in PICTURES.items()}


def patches_of(family: Family, picture: np.ndarray) -> Answer:
    """{"patches": (N, 588) float32, "grid": rows and columns}: of patches, or for llama4 of tiles, whose patches follow
    each other."""
    image = decode_image(as_file(picture))
    if family == "llama4":
        tiled = tile_image(image)
        return {
            "patches": np.concatenate([tile.patches for tile in tiled.tiles]),
            "grid": np.array(tiled.grid, np.int64),
        }
    patched = patch_image(image)
    return {"patches": patched.patches, "grid": np.array(patched.grid, np.int64)}


def grids_of(family: Family, sizes: list[list[int]]) -> Answer:
    """{"grids": [[rows, columns], …], "num_tokens": […]}: cells, or tiles for llama4; tokens with the marks around."""
    if family == "llama4":
        return {
            "grids": [list(plan_tiles(w, h)) for w, h in sizes],
            "num_tokens": [count_tile_tokens(w, h) for w, h in sizes],
        }
    grids = [plan_grid(w, h) for w, h in sizes]
    return {"grids": [list(grid) for grid in grids], "num_tokens": [rows * columns + 2 for rows, columns in grids]}


def patch_cases(pictures: Arrays) -> Iterator[tuple[Case, Arrays, Arrays]]:
    """Each with what goes in (a picture, and which patches are compared) and what must come out."""
    for family, names in SHOWN.items():
        for name in names:
            whole = patches_of(family, pictures[name])
            count = len(whole["patches"])
            rows = np.unique(np.linspace(0, count - 1, min(NUM_ROWS, count)).round().astype(np.int64))
            moves = {
                mistake: float(np.abs(make(family, pictures[name])[rows] - whole["patches"][rows]).max())
                for mistake, make in _MISTAKES.items()
            }
            guards = tuple(
                Guard(_SAYS[mistake], float(f"{moved:.2g}"))
                for mistake, moved in moves.items()
                if moved > 3 * TOLERANCE[family]
            )
            h, w = pictures[name].shape[:2]
            about = f"a picture of {w} x {h} pixels"
            clear = pictures[name].shape[2] == 4  # what to put transparency on is said for llama4 only
            case = Case(
                f"{family}.patches.{name}",
                "patches",
                family,
                about + (" with transparency, which is put on white" if clear else ""),
                guards,
                TOLERANCE[family],
                basis="musespark" if clear and family != "llama4" else "published",
            )
            expected = {"patches": whole["patches"][rows], "num_patches": np.array([count]), "grid": whole["grid"]}
            yield case, {"picture": pictures[name], "rows": rows}, expected


def grid_cases() -> Iterator[tuple[Case, Answer, Answer]]:
    guards: dict[Family, tuple[str, ...]] = {
        "muse_spark": (
            "takes the larger of two equally near grids, as for 100 x 100",
            "caps the grid at another count",
        ),
        "muse_glimmer": ("takes the larger of two equally near grids, as for 100 x 100", "enlarges small pictures"),
        "llama4": (
            "takes the largest canvas instead of the one that enlarges least",
            "forgets separators in the count",
        ),
    }
    for family, says in guards.items():
        about = f"grids and token counts of {len(SIZES)} sizes"
        case = Case(f"{family}.grids.sizes", "grids", family, about, tuple(Guard(text) for text in says))
        yield case, {"sizes": SIZES}, grids_of(family, SIZES)


# Mistakes. Each gives patches (N, 588) of the right number, for any family.


def _cut(family: Family, picture: np.ndarray, resample: Image.Resampling, *, stretch: bool = False) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(picture[..., :3]))
    if family != "llama4":
        rows, columns = plan_grid(*image.size)
        return cut_patches(np.asarray(image.resize((columns * 28, rows * 28), resample)) * np.float32(LEVEL) - 1)
    rows, columns = plan_tiles(*image.size)
    canvas = Image.new("RGB", (columns * 336, rows * 336))
    canvas.paste(image.resize(canvas.size if stretch else fitted_size(*image.size), resample))
    pixels = np.asarray(canvas)
    tiles = [pixels[y : y + 336, x : x + 336] for y in range(0, rows * 336, 336) for x in range(0, columns * 336, 336)]
    if len(tiles) > 1:
        tiles.append(np.asarray(image.resize((336, 336), resample)))
    return np.concatenate([cut_patches(tile * np.float32(LEVEL) - 1) for tile in tiles])


def _filter(family: Family) -> Image.Resampling:
    return Image.Resampling.BILINEAR if family == "llama4" else Image.Resampling.LANCZOS


def _on_white(picture: np.ndarray) -> np.ndarray:
    if picture.shape[2] == 3:
        return picture
    image, white = Image.fromarray(picture), Image.new("RGB", picture.shape[1::-1], "white")
    white.paste(image, mask=image.getchannel("A"))
    return np.asarray(white)


def _channel_last(family: Family, picture: np.ndarray) -> np.ndarray:
    right = _cut(family, _on_white(picture), _filter(family))
    return right.reshape(-1, 3, 14, 14).transpose(0, 2, 3, 1).reshape(len(right), -1)


_MISTAKES: dict[str, Callable[[Family, np.ndarray], np.ndarray]] = {
    "bicubic": lambda family, picture: _cut(family, _on_white(picture), Image.Resampling.BICUBIC),
    "bgr": lambda family, picture: _cut(family, _on_white(picture)[..., ::-1], _filter(family)),
    "channel-last": _channel_last,
    "alpha-dropped": lambda family, picture: _cut(family, picture, _filter(family)),
    "stretched": lambda family, picture: _cut(family, _on_white(picture), _filter(family), stretch=True),
}
