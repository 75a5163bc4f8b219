"""Llama 4's tiles: the canvas of the published rule, the pixels of Pillow, the order and the tokens of the layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import SizeDict

from chat.image_samples import encoded, picture
from chat.published_processors import published_module
from musespark.chat.tiles import MAX_TILES, count_tile_tokens, fitted_size, load_tiles, plan_tiles, tile_image
from musespark.errors import InvalidImage


@pytest.fixture(scope="module")
def published_plan() -> Callable[[int, int], tuple[tuple[int, int], tuple[int, int]]]:
    """(canvas in tiles, size on it) of an image, put together as `Llama4ImageProcessor._preprocess` does."""
    published = published_module("llama4")
    canvases = torch.tensor(published["find_supported_resolutions"](16, SizeDict(height=336, width=336)))

    def plan(width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        canvas = published["get_best_fit"]((height, width), canvases).tolist()
        limit = min(max(height, 336), canvas[0]), min(max(width, 336), canvas[1])
        fitted = published["get_max_res_without_distortion"]((height, width), limit)
        return (canvas[0] // 336, canvas[1] // 336), (max(fitted[1], 1), max(fitted[0], 1))

    return plan


def test_canvases_agree_with_transformers(published_plan: Any) -> None:
    random = np.random.default_rng(5)
    sizes = [(s, s) for s in range(1, 1500, 7)]
    sizes += [(336 * a + d, 336 * b + e) for a in range(1, 6) for b in range(1, 6) for d in (-1, 0, 1) for e in (-1, 0)]
    sizes += [tuple(random.integers(1, limit, 2).tolist()) for limit in (400, 2000, 6000, 65_536) for _ in range(400)]
    for width, height in sizes:
        grid, fitted = published_plan(width, height)
        assert plan_tiles(width, height) == grid, (width, height)
        assert fitted_size(width, height) == fitted, (width, height)


@pytest.mark.parametrize(
    ("size", "grid", "num_tokens"),
    [
        # The published counts for 1, 4, 9 and 16 tiles.
        ((336, 336), (1, 1), 147),
        ((672, 672), (2, 2), 727),
        ((1008, 1008), (3, 3), 1452),
        ((1344, 1344), (4, 4), 2467),
        ((1, 1), (1, 1), 147),
        ((5376, 336), (1, 16), 2467),
        ((336, 5376), (16, 1), 2467),
    ],
)
def test_the_tokens_of_an_image(size: tuple[int, int], grid: tuple[int, int], num_tokens: int) -> None:
    assert plan_tiles(*size) == grid
    assert count_tile_tokens(*size) == num_tokens


@given(st.integers(1, 65_535), st.integers(1, 65_535))
def test_every_size_fits_its_canvas(width: int, height: int) -> None:
    rows, columns = plan_tiles(width, height)
    assert 1 <= rows * columns <= MAX_TILES
    fitted = fitted_size(width, height)
    assert 1 <= fitted[0] <= 336 * columns
    assert 1 <= fitted[1] <= 336 * rows


@pytest.mark.parametrize("size", [(0, 1), (1, 0), (65_536, 1), (1, 65_536)])
def test_no_canvas_for_a_size_out_of_range(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage, match="1 to 65,535"):
        plan_tiles(*size)


def published_values(pixels: np.ndarray) -> np.ndarray:
    """Rescaling and normalising in bfloat16, operation by operation, as the processor does."""
    values = torch.from_numpy(pixels.copy()).to(torch.bfloat16) * (1 / 255)
    half = torch.tensor(0.5, dtype=torch.bfloat16)
    return values.sub(half).div(half).float().numpy()


def whole(tile: np.ndarray) -> np.ndarray:
    """The (336, 336, 3) pixels that 576 patches were cut from."""
    return tile.reshape(24, 24, 3, 14, 14).transpose(0, 3, 1, 4, 2).reshape(336, 336, 3)


@pytest.mark.parametrize("size", [(700, 500), (340, 1000), (50, 30), (336, 336), (1500, 1400), (3, 900)])
def test_tiles_are_the_pixels_of_pillow_and_padding(size: tuple[int, int]) -> None:
    image = picture(*size)
    (tiled,) = load_tiles([encoded(image, "PNG")])
    rows, columns = tiled.grid
    assert len(tiled.tiles) == (rows * columns if rows * columns == 1 else rows * columns + 1)
    canvas = np.zeros((336 * rows, 336 * columns, 3), np.uint8)
    fitted = fitted_size(*size)
    canvas[: fitted[1], : fitted[0]] = np.asarray(image.resize(fitted, Image.Resampling.BILINEAR))
    expected = published_values(canvas)
    for i in range(rows * columns):
        y, x = i // columns * 336, i % columns * 336
        np.testing.assert_array_equal(whole(tiled.tiles[i].patches), expected[y : y + 336, x : x + 336])
    if len(tiled.tiles) > 1:
        small = np.asarray(image.resize((336, 336), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(whole(tiled.tiles[-1].patches), published_values(small))


def test_the_filter_is_torchs_to_one_level() -> None:
    """transformers resizes with torch's antialiased bilinear filter on bytes; Pillow's rounds a little differently."""
    image = picture(700, 500)
    fitted = fitted_size(700, 500)
    tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    size = (fitted[1], fitted[0])
    theirs = torch.nn.functional.interpolate(tensor, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    ours = np.asarray(image.resize(fitted, Image.Resampling.BILINEAR))
    assert np.abs(theirs.astype(int) - ours.astype(int)).max() <= 1


def test_a_tile_is_an_image_of_its_own() -> None:
    tiled = tile_image(picture(672, 336))
    assert tiled.grid == (1, 2)
    assert [tile.grid for tile in tiled.tiles] == [(24, 24)] * 3
    assert [tile.num_tokens for tile in tiled.tiles] == [144] * 3
    assert len({tile.digest for tile in tiled.tiles}) == 3
    assert tile_image(picture(672, 336)).tiles[1].digest == tiled.tiles[1].digest


def test_padding_is_black_and_at_the_right_and_bottom() -> None:
    tiled = tile_image(Image.new("RGB", (400, 300), "white"))
    first = whole(tiled.tiles[0].patches)
    assert tiled.grid == (1, 2)
    assert (first[:300] == 1).all()
    assert (first[300:] == -1).all()
    assert (whole(tiled.tiles[1].patches)[:, 64:] == -1).all()
    assert (whole(tiled.tiles[2].patches) == 1).all()


def test_transparency_is_put_on_white() -> None:
    (tiled,) = load_tiles([encoded(Image.new("RGBA", (336, 336), (0, 0, 0, 0)), "PNG")])
    assert (tiled.tiles[0].patches == 1).all()


def test_bad_and_too_many_images_are_refused() -> None:
    with pytest.raises(InvalidImage, match="not an image"):
        load_tiles([b"hello"])
    with pytest.raises(InvalidImage, match="17 images"):
        load_tiles([encoded(picture(20, 20), "PNG")] * 17)
