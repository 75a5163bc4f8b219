"""Pixels to patches: the published grid rule, the pixels of Pillow, every mode and orientation that files come in."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from chat.image_samples import encoded, picture, png, png_chunk, png_header
from chat.published_processors import published_module
from musespark.chat.images import MAX_IMAGE_TOKENS, PatchedImage, load_image, patch_image, plan_grid
from musespark.errors import InvalidImage

# From the published processor: the side of a square image, and the side it is resized to.
SQUARES = """29 28, 57 84, 60 84, 85 112, 100 112, 113 112, 150 168, 200 224, 225 224, 256 280, 300 280, 384 392,
400 392, 500 476, 512 532, 600 588, 640 644, 720 700, 768 784, 800 784, 900 896, 1000 1008, 1024 1036, 1500 1512,
1800 1792, 3000 1792"""
# And an image's width and height, and its tokens.
TOKENS = """1 1 1, 100 100 16, 224 224 64, 336 336 144, 512 512 361, 640 480 391, 1024 768 972, 1024 1024 1369,
1920 1080 2691, 2048 2048 4096, 4000 3000 4015, 30 5000 178"""


def table(text: str) -> list[list[int]]:
    return [[int(number) for number in row.split()] for row in text.split(",")]


@pytest.fixture(scope="module")
def published_resize() -> Callable[[int, int, int, int], tuple[int, int]]:
    resize: Callable[[int, int, int, int], tuple[int, int]] = published_module("muse_glimmer")["smart_resize"]
    return resize


@pytest.mark.parametrize(("side", "resized"), table(SQUARES))
def test_square_sides_are_the_published_ones(side: int, resized: int) -> None:
    assert plan_grid(side, side) == (resized // 28, resized // 28)


@pytest.mark.parametrize(("width", "height", "num_tokens"), table(TOKENS))
def test_token_counts_are_the_published_ones(width: int, height: int, num_tokens: int) -> None:
    rows, columns = plan_grid(width, height)
    assert rows * columns == num_tokens


def test_grids_agree_with_transformers(published_resize: Callable[[int, int, int, int], tuple[int, int]]) -> None:
    random = np.random.default_rng(7)
    sizes = [(s, s) for s in range(1, 2500)]
    sizes += [tuple(random.integers(1, limit, 2).tolist()) for limit in (60, 500, 3000, 65_536) for _ in range(3000)]
    for width, height in sizes:
        rows, columns = plan_grid(width, height)
        assert (28 * rows, 28 * columns) == published_resize(height, width, 28, 4096), (width, height)


@given(st.integers(1, 65_535), st.integers(1, 65_535))
def test_every_size_lands_between_one_token_and_the_cap(width: int, height: int) -> None:
    rows, columns = plan_grid(width, height)
    assert rows >= 1
    assert columns >= 1
    assert rows * columns <= MAX_IMAGE_TOKENS


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (-1, 10), (65_536, 1), (1, 65_536)])
def test_no_grid_for_a_size_out_of_range(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage, match="1 to 65,535"):
        plan_grid(*size)


@pytest.mark.parametrize("size", [(224, 224), (113, 57), (300, 40), (640, 480), (1, 1), (1, 700), (900, 3)])
def test_patches_are_the_pixels_that_pillow_resizes_to(size: tuple[int, int]) -> None:
    image = picture(*size)
    loaded = load_image(encoded(image, "PNG"))
    rows, columns = loaded.grid
    resized = np.asarray(image.resize((14 * columns, 14 * rows), Image.Resampling.LANCZOS), dtype=np.float64)
    assert loaded.patches.shape == (rows * columns, 588)
    assert loaded.patches.dtype == np.float32
    for i in range(rows * columns):
        y, x = i // columns * 14, i % columns * 14
        expected = [resized[y : y + 14, x : x + 14, channel].ravel() for channel in range(3)]
        np.testing.assert_allclose(loaded.patches[i], np.concatenate(expected) / 255 / 0.5 - 1, atol=1e-6)


def test_black_is_minus_one_and_white_is_one() -> None:
    for colour, value in (("black", -1.0), ("white", 1.0)):
        patches = load_image(encoded(Image.new("RGB", (50, 80), colour), "PNG")).patches
        assert (patches == value).all()


def test_a_patch_is_flattened_channel_first_and_rows_before_columns() -> None:
    image = Image.new("RGB", (28, 28))
    image.putpixel((3, 17), (10, 20, 30))  # x 3, y 17: in the patch of row 1, column 0, at y 3, x 3
    patches = load_image(encoded(image, "PNG")).patches
    bright = np.argwhere(patches > -1).tolist()
    assert bright == [[2, channel * 196 + 3 * 14 + 3] for channel in range(3)]


def test_tokens_count_two_by_two_patches() -> None:
    image = load_image(encoded(picture(640, 480), "PNG"))
    assert image.grid == (34, 46)
    assert image.num_tokens == 17 * 23


@pytest.mark.parametrize(
    ("file_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("PNG", {"interlace": 1})]
)
def test_lossless_formats_give_the_same_image(file_format: str, options: dict[str, object]) -> None:
    image = picture(70, 50)
    assert same(load_image(encoded(image, file_format, **options)), patch_image(image))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_gives_what_pillow_decodes(options: dict[str, object]) -> None:
    file = encoded(picture(71, 53), "JPEG", **options)
    assert same(load_image(file), patch_image(decoded(file)))


def test_lossy_webp_gives_what_pillow_decodes() -> None:
    file = encoded(picture(71, 53), "WEBP", quality=80)
    assert same(load_image(file), patch_image(decoded(file)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_modes_without_transparency(mode: str) -> None:
    image = picture(56, 56).convert(mode)
    assert same(load_image(encoded(image, "PNG")), patch_image(image.convert("RGB")))


def test_cmyk_jpeg() -> None:
    image = picture(56, 56).convert("CMYK")
    loaded = load_image(encoded(image, "JPEG", quality=100, subsampling=0))
    difference = loaded.patches - patch_image(picture(56, 56)).patches
    assert np.abs(difference).mean() < 2 / 127.5  # not inverted, not black: within two grey levels of the original


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    deep = np.linspace(0, 65_535, 56 * 56).astype(np.uint16).reshape(56, 56)
    loaded = load_image(encoded(Image.fromarray(deep), "PNG"))
    expected = patch_image(Image.fromarray((deep // 256).astype(np.uint8)).convert("RGB"))
    assert same(loaded, expected)


def test_sixteen_bit_colour() -> None:
    file = png([b"\x40\x11\x80\x22\xc0\x33" * 28] * 28, png_header(28, 28, depth=16))
    assert same(load_image(file), flat(0x40, 0x80, 0xC0))


@pytest.mark.parametrize(("alpha", "expected"), [(0, (255, 255, 255)), (255, (200, 0, 100)), (51, (244, 204, 224))])
def test_alpha_is_put_on_white(alpha: int, expected: tuple[int, int, int]) -> None:
    """expected = alpha/255 * colour + (1 - alpha/255) * 255, by hand."""
    for file_format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        file = encoded(Image.new("RGBA", (28, 28), (200, 0, 100, alpha)), file_format, **options)
        assert same(load_image(file), flat(*expected))


def test_grey_with_alpha_is_put_on_white() -> None:
    file = encoded(Image.new("LA", (28, 28), (100, 51)), "PNG")
    assert same(load_image(file), flat(224, 224, 224))


KEYS = {
    "grey": (png_header(28, 28, colour=0), b"\x64", b"\x00\x64"),
    "grey 16": (png_header(28, 28, depth=16, colour=0), b"\x64\x01", b"\x64\x01"),
    "colour": (png_header(28, 28), b"\x01\x02\x03", b"\x00\x01\x00\x02\x00\x03"),
    "colour 16": (png_header(28, 28, depth=16), b"\x11\x01\x22\x02\x33\x03", b"\x11\x01\x22\x02\x33\x03"),
}


@pytest.mark.parametrize("name", KEYS)
def test_the_transparent_colour_of_a_png_becomes_white(name: str) -> None:
    header, pixel, key = KEYS[name]
    other = bytes(255 - byte for byte in pixel)
    rows = [pixel * 14 + other * 14] * 28
    with_key = load_image(png(rows, header, png_chunk(b"tRNS", key)))
    without = load_image(png(rows, header))
    left = np.arange(14 * 14 * 3)
    assert (with_key.patches[[0, 2]] == 1).all()
    assert (without.patches[[0, 2]][:, left] < 1).all()
    assert np.array_equal(with_key.patches[[1, 3]], without.patches[[1, 3]])


def test_the_transparent_index_of_a_gif_becomes_white() -> None:
    image = Image.new("P", (28, 28), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 14, 28))
    opaque, clear = encoded(image, "GIF"), encoded(image, "GIF", transparency=0)
    assert load_image(opaque).patches[0, :196].tolist() == [1.0] * 196  # red
    assert load_image(opaque).patches[0, 196:].tolist() == [-1.0] * 392
    assert (load_image(clear).patches[0] == 1).all()
    assert np.array_equal(load_image(clear).patches[1], load_image(opaque).patches[1])


def test_a_palette_with_several_alphas_is_put_on_white() -> None:
    image = Image.new("P", (28, 28), 1)
    image.putpalette([255, 0, 0, 200, 0, 100])
    assert same(load_image(encoded(image, "PNG", transparency=bytes([0, 51]))), flat(244, 204, 224))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(picture(90, 40), file_format, exif=exif, **({"lossless": True} if file_format == "WEBP" else {}))
    upright = ImageOps.exif_transpose(decoded(file))
    loaded = load_image(file)
    assert same(loaded, patch_image(upright))
    assert (loaded.grid[0] > loaded.grid[1]) == (orientation >= 5)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of it, and goes on
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0" + b"\xff" * 40])
def test_broken_metadata_does_not_refuse_a_photo(exif: bytes) -> None:
    plain, broken = encoded(picture(56, 56), "JPEG"), encoded(picture(56, 56), "JPEG", exif=exif)
    assert same(load_image(broken), load_image(plain))


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(picture(90, 40), "PNG", exif=exif)
    assert same(load_image(file), patch_image(picture(90, 40)))


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("GIF", {}), ("PNG", {}), ("PNG", {"default_image": True}), ("WEBP", {"lossless": True})],
)
def test_an_animation_is_its_first_frame(file_format: str, options: dict[str, object]) -> None:
    frames = [Image.new("RGB", (60, 60), colour) for colour in ("red", "green", "blue")]
    file = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], duration=100, **options)
    assert same(load_image(file), patch_image(frames[0]))


def test_a_jpeg_with_several_pictures_is_its_first() -> None:
    first, second = picture(90, 40, seed=1), picture(60, 60, seed=2)
    file = encoded(first, "MPO", save_all=True, append_images=[second])
    assert same(load_image(file), load_image(encoded(first, "JPEG")))


def test_a_colour_profile_changes_nothing() -> None:
    plain, tagged = encoded(picture(56, 56), "PNG"), encoded(picture(56, 56), "PNG", icc_profile=b"\0" * 3000)
    assert same(load_image(plain), load_image(tagged))


def test_images_that_look_different_have_different_digests() -> None:
    wide, tall = Image.new("RGB", (56, 28), "red"), Image.new("RGB", (28, 56), "red")  # the same bytes in another shape
    turned = Image.Exif()
    turned[0x0112] = 3
    files = [
        encoded(wide, "PNG"),
        encoded(tall, "PNG"),
        encoded(Image.new("RGB", (56, 28), (254, 0, 0)), "PNG"),
        encoded(picture(56, 28), "PNG"),
        encoded(picture(56, 28), "PNG", exif=turned),
        encoded(Image.new("RGBA", (56, 28), (255, 0, 0, 128)), "PNG"),
    ]
    assert len({load_image(file).digest for file in files}) == len(files)


def test_the_same_pixels_have_the_same_digest_in_any_file() -> None:
    image = picture(56, 28).convert("P")
    files = [encoded(image, "PNG"), encoded(image.convert("RGB"), "PNG"), encoded(image, "GIF")]
    assert len({load_image(file).digest for file in files}) == 1


def decoded(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


def flat(red: int, green: int, blue: int) -> PatchedImage:
    return patch_image(Image.new("RGB", (28, 28), (red, green, blue)))


def same(one: PatchedImage, other: PatchedImage) -> bool:
    equal = one.digest == other.digest
    assert equal == (one.grid == other.grid and np.array_equal(one.patches, other.patches))
    return equal
