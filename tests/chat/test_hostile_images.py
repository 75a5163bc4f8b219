"""Files made to break a decoder, or to make it work for hours: each is refused with a reason, or read within limits."""

from __future__ import annotations

import io
import re
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from chat.image_samples import encoded, picture, png_chunk, png_header, with_png_chunks
from musespark.chat import image_files, images
from musespark.chat.image_files import MAX_BLOCKS, MAX_FILE_BYTES, MAX_JPEG_SCANS, read_header
from musespark.chat.images import load_image, load_images
from musespark.errors import InvalidImage

FILES = {
    "png": encoded(picture(40, 30), "PNG"),
    "png palette": encoded(picture(40, 30).convert("P"), "PNG", transparency=3),
    "jpeg": encoded(picture(40, 30), "JPEG"),
    "jpeg progressive": encoded(picture(40, 30), "JPEG", progressive=True),
    "gif": encoded(picture(40, 30), "GIF"),
    "gif animated": encoded(picture(40, 30), "GIF", save_all=True, append_images=[picture(40, 30, seed=1)]),
    "webp": encoded(picture(40, 30), "WEBP"),
    "webp lossless": encoded(picture(40, 30).convert("RGBA"), "WEBP", lossless=True),
    "webp animated": encoded(picture(40, 30), "WEBP", save_all=True, append_images=[picture(40, 30, seed=1)]),
}


def refusal(file: bytes) -> str:
    """The message `file` is refused with; it must help its reader and give nothing else away."""
    with pytest.raises(InvalidImage) as caught:
        load_image(file)
    message = str(caught.value)
    assert not re.search(r"0x|<|object|Traceback|/tmp|PIL", message), message
    assert caught.value.__cause__ is None
    return message


def test_an_empty_file() -> None:
    assert "empty" in refusal(b"")


@pytest.mark.parametrize(
    "file",
    [
        b"hello",
        b"\0" * 1000,
        b"%PDF-1.7\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"RIFF\x24\0\0\0WAVEfmt ",
        *(encoded(picture(40, 30), kind) for kind in ("BMP", "TIFF", "ICO", "PPM", "TGA", "JPEG2000", "PCX")),
    ],
    ids=lambda file: repr(file[:4]),
)
def test_what_is_not_one_of_the_four_formats(file: bytes) -> None:
    assert refusal(file).endswith("send PNG, JPEG, WebP or GIF")


@pytest.mark.parametrize("name", FILES)
def test_only_the_signature_of_a_format(name: str) -> None:
    for length in range(1, 34):
        refusal(FILES[name][:length])


@pytest.mark.parametrize("name", FILES)
def test_truncated_files(name: str) -> None:
    """Without its second half no file gives a picture; cut later, some decoders have all they need."""
    file = FILES[name]
    whole = load_image(file).digest
    first_frame = len(file) // 2 if "animated" not in name else len(file) // 5
    for length in range(len(file)):
        if length < first_frame:
            refusal(file[:length])
        else:
            try:
                assert load_image(file[:length]).digest == whole
            except InvalidImage as error:
                assert "damaged" in str(error)  # noqa: PT017


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of some damage, and goes on
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_read_or_refused(name: str) -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        file = bytearray(FILES[name])
        for position in random.integers(0, len(file), random.integers(1, 6)):
            file[position] = random.integers(0, 256)
        try:
            image = load_image(bytes(file))
        except InvalidImage as error:
            assert "0x" not in str(error)  # noqa: PT017
        else:
            assert image.patches.shape == (image.grid[0] * image.grid[1], 588)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 999), (999, 1), (1, 65_535), (65_535, 1)])
def test_the_thinnest_images(size: tuple[int, int]) -> None:
    image = load_image(encoded(Image.new("RGB", size, "white"), "PNG"))
    rows, columns = max(1, round(size[1] / 28)), max(1, round(size[0] / 28))
    assert image.grid in {(2 * rows, 2 * columns), (2 * rows, 2 * columns + 2), (2 * rows + 2, 2 * columns)}
    assert (image.patches == 1).all()


def test_the_longest_jpeg_and_webp_and_gif() -> None:
    for kind, side in (("JPEG", 65_500), ("WEBP", 16_383), ("GIF", 65_535)):
        assert load_image(encoded(Image.new("L", (side, 1)), kind)).num_tokens in {side // 28, side // 28 + 1}


def test_a_side_over_the_limit() -> None:
    assert read_header(png_header(65_535, 1)).width == 65_535
    for size in ((65_536, 1), (1, 65_536), (2**31 - 1, 2**31 - 1)):
        assert "a side may have 65,535" in refusal(png_header(*size))


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_a_size_of_nothing(size: tuple[int, int]) -> None:
    jpeg = bytearray(FILES["jpeg"])
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", size[1], size[0])
    for file in (png_header(*size), bytes(jpeg)):
        assert "damaged" in refusal(file)


def test_the_number_of_pixels_on_both_sides_of_the_limit() -> None:
    assert read_header(png_header(10_000, 5_000)).height == 5_000
    assert "50,010,000; the limit is 50,000,000" in refusal(png_header(10_000, 5_001))


def bombs() -> dict[str, bytes]:
    """Files under a kilobyte that claim pixels by the gigabyte."""
    jpeg = bytearray(FILES["jpeg"])
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = b"\xff\xff\xff\xff"
    gif_screen, gif_frame = bytearray(FILES["gif"]), bytearray(FILES["gif"])
    gif_screen[6:10] = b"\xff\xff\xff\xff"
    at = gif_frame.index(b",\0\0\0\0\x28\0\x1e\0")
    gif_frame[at + 1 : at + 9] = b"\xff" * 8
    webp, lossless = bytearray(FILES["webp"]), bytearray(encoded(picture(40, 30), "WEBP", lossless=True))
    webp[26:30] = b"\xff\x3f\xff\x3f"
    lossless[21:25] = b"\xff\xff\xff\x0f"
    canvas = bytearray(FILES["webp animated"])
    canvas[24:30] = b"\xff" * 6
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0" * 500_000))
    return {
        "png": png_header(65_535, 65_535, depth=1, colour=0) + pixels,
        "jpeg": bytes(jpeg),
        "gif screen": bytes(gif_screen),
        "gif frame": bytes(gif_frame),
        "webp": bytes(webp),
        "webp lossless": bytes(lossless),
        "webp canvas": bytes(canvas),
    }


@pytest.mark.parametrize(("name", "file"), bombs().items(), ids=bombs())
def test_decompression_bombs_are_refused_by_their_headers(name: str, file: bytes) -> None:
    start = time.process_time()
    message = refusal(file)
    assert time.process_time() - start < 1
    assert "pixels" in message, name


@pytest.mark.parametrize("second_size", [b"\0\x50\0\x50", b"\xff\xff\xff\xff"])
def test_a_jpeg_that_says_two_sizes(second_size: bytes) -> None:
    file = FILES["jpeg"]
    at = file.index(b"\xff\xc0")
    frame = file[at : at + 19]
    assert "damaged" in refusal(file[: at + 19] + frame[:5] + second_size + frame[9:] + file[at + 19 :])


def test_a_real_bomb_of_two_hundred_megabytes() -> None:
    pixels = zlib.compress(b"\0" * (8_000 * (1 + 8_000 * 3)))
    file = png_header(8_000, 8_000) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
    assert len(file) < 1_000_000
    assert "64,000,000; the limit is 50,000,000" in refusal(file)


def test_the_file_size_on_both_sides_of_the_limit() -> None:
    padding = MAX_FILE_BYTES - len(FILES["png"])
    load_image(FILES["png"] + b"\0" * padding)
    assert f"the limit is {MAX_FILE_BYTES:,}" in refusal(FILES["png"] + b"\0" * (padding + 1))


def test_jpeg_scans_on_both_sides_of_the_limit() -> None:
    file = FILES["jpeg progressive"]
    scans = [m.start() for m in re.finditer(rb"\xff\xda", file)]
    first = file[scans[0] : scans[1]].rsplit(b"\xff\xc4")[0]  # without the tables of the next
    most = file[: scans[0]] + first * (MAX_JPEG_SCANS - len(scans)) + file[scans[0] :]
    assert load_image(most).digest == load_image(file).digest
    assert "64 scans" in refusal(file[: scans[0]] + first + most[scans[0] :])


def test_scans_behind_the_end_of_a_jpeg_do_not_count() -> None:
    """Phones append films and previews to their photos."""
    load_image(FILES["jpeg"] + b"\xff\xda\0\x04\0\0" * 1000)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif"])
def test_blocks_on_both_sides_of_the_limit(kind: str) -> None:
    file = FILES[kind]
    if kind == "png":
        block, at = png_chunk(b"tEXt", b"a\0b"), 33
        already = 2  # header and pixels
    elif kind == "jpeg":
        block, at = b"\xff\xfe\0\x02", 2
        already = len(re.findall(rb"\xff[\xc0-\xfe]", file)) - 2  # without the marks of start and end
    else:
        block, at = b"!\xfe\0", file.index(b",\0\0\0\0\x28\0")
        already = 0
    most = file[:at] + block * (MAX_BLOCKS - already) + file[at:]
    assert load_image(most).digest == load_image(file).digest
    assert "20,000 blocks" in refusal(file[:at] + block * (MAX_BLOCKS - already + 1) + file[at:])


def test_twenty_megabytes_of_comments_take_no_time() -> None:
    gif = FILES["gif"]
    at = gif.index(b",\0\0\0\0\x28\0")
    files = [
        with_png_chunks(FILES["png"], png_chunk(b"tEXt", b"a\0b") * 1_000_000),
        FILES["jpeg"][:2] + b"\xff\xfe\0\x02" * 4_000_000 + FILES["jpeg"][2:],
        gif[:at] + b"!\xfe\0" * 6_000_000 + gif[at:],
        gif[:at] + b"!\xfe" + b"\x01c" * 9_000_000 + b"\0" + gif[at:],
        gif[:at] + b"\0" * 20_000_000,
    ]
    start = time.process_time()
    for file in files:
        refusal(file)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt", b"iTXt"])
def test_compressed_metadata_bombs(name: bytes) -> None:
    inflated = zlib.compress(b"\0" * 200_000_000, 9)
    start = time.process_time()
    fields = b"\1\0\0\0" if name == b"iTXt" else b"\0"
    refusal(with_png_chunks(FILES["png"], png_chunk(name, b"a\0" + fields + inflated)))
    assert time.process_time() - start < 1


def test_a_second_colour_profile_is_refused() -> None:
    """Ten thousand of them, each just under the decoder's own limit, took it 22 seconds."""
    profile = png_chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 1_000_000, 9))
    load_image(with_png_chunks(FILES["png"], profile))
    assert "two colour profiles" in refusal(with_png_chunks(FILES["png"], profile * 2))


def test_a_huge_colour_profile_in_a_jpeg_is_not_applied() -> None:
    file = encoded(picture(40, 30), "JPEG", icc_profile=b"\xff" * 5_000_000)
    assert load_image(file).digest == load_image(FILES["jpeg"]).digest


def test_the_number_of_images_on_both_sides_of_the_limit() -> None:
    assert len(load_images([FILES["png"]] * images.MAX_IMAGES)) == images.MAX_IMAGES
    with pytest.raises(InvalidImage, match="17 images; the limit is 16"):
        load_images([FILES["png"]] * (images.MAX_IMAGES + 1))


def test_the_pixels_of_all_images_on_both_sides_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_TOTAL_PIXELS", 3 * 40 * 30)
    assert len(load_images([FILES["png"]] * 3)) == 3
    with pytest.raises(InvalidImage, match="4,800 pixels together; the limit is 3,600"):
        load_images([FILES["png"]] * 4)


def test_a_prompt_of_bombs_is_refused_before_the_first_is_decoded() -> None:
    file = encoded(Image.new("1", (10_000, 5_000)), "PNG")
    start = time.process_time()
    with pytest.raises(InvalidImage, match="150,000,000 pixels together"):
        load_images([file] * 3)
    assert time.process_time() - start < 0.5


def test_headers_are_read_as_pillow_reads_them() -> None:
    for name, file in FILES.items():
        header = image_files.read_header(file)
        opened = Image.open(io.BytesIO(file))
        assert (header.format, header.width, header.height) == (opened.format, *opened.size), name
