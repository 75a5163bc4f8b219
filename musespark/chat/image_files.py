"""What an image file says about itself before anything is decoded: its format, its size, the work it asks for.

A few hundred bytes can ask for gigabytes of pixels, or for hours of passes over them, so these numbers are read from
the headers and capped here; `images` decodes only what passed. Sources: the specifications of PNG, JPEG, GIF and WebP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from musespark.errors import InvalidImage

Format = Literal["PNG", "JPEG", "GIF", "WEBP"]

MAX_FILE_BYTES = 20 * 1024 * 1024
MAX_SIDE = 65_535  # the largest that JPEG and GIF can say; keeps every grid under the token cap
MAX_PIXELS = 50_000_000  # a 48-megapixel photo fits; decoding takes 250 MB for a JPEG, 620 MB for grey with alpha
MAX_JPEG_SCANS = 64  # each is a pass over all pixels; progressive encoders write about ten
MAX_BLOCKS = 20_000  # segments, chunks or extensions; a 20 MB PNG with 4 KB data chunks has 5,000

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# A marker that starts a segment: neither a stuffed zero, nor padding, nor one of the markers that stand alone.
_JPEG_SEGMENT = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")


@dataclass(frozen=True, slots=True)
class ImageHeader:
    format: Format
    width: int
    height: int


def read_header(data: bytes) -> ImageHeader:
    """The format and size that a file declares. Raises InvalidImage beyond any limit of this module."""
    if not data:
        raise InvalidImage("the image is empty (0 bytes)")
    if len(data) > MAX_FILE_BYTES:
        raise InvalidImage(f"the image file has {len(data):,} bytes; the limit is {MAX_FILE_BYTES:,}")
    if data.startswith(_PNG_SIGNATURE):
        header = _png_header(data)
    elif data.startswith(b"\xff\xd8\xff"):
        header = _jpeg_header(data)
    elif data[:6] in (b"GIF87a", b"GIF89a"):
        header = _gif_header(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = _webp_header(data)
    else:
        raise InvalidImage("the data is not an image in a supported format; send PNG, JPEG, WebP or GIF")
    _check_size(header.width, header.height)
    return header


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise InvalidImage(f"the image is damaged: its header says {width} x {height} pixels")
    if width > MAX_SIDE or height > MAX_SIDE:
        raise InvalidImage(f"the image has {width} x {height} pixels; a side may have {MAX_SIDE:,}")
    if width * height > MAX_PIXELS:
        raise InvalidImage(f"the image has {width} x {height} pixels, {width * height:,}; the limit is {MAX_PIXELS:,}")


def _png_header(data: bytes) -> ImageHeader:
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise InvalidImage("the PNG file is damaged: it does not start with a header chunk")
    at = len(_PNG_SIGNATURE)
    num_chunks = num_profiles = 0
    while at < len(data) and (name := data[at + 4 : at + 8]) != b"IEND":
        num_chunks += 1
        _check_blocks(num_chunks)
        num_profiles += name == b"iCCP"
        if num_profiles > 1:  # each would be inflated, by up to 1 MB
            raise InvalidImage("the PNG file is damaged: it has two colour profiles")
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return ImageHeader("PNG", int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))


def _jpeg_header(data: bytes) -> ImageHeader:
    size: tuple[int, int] | None = None
    num_scans = num_segments = 0
    at = 2
    while segment := _JPEG_SEGMENT.search(data, at):
        at = segment.start()
        marker = data[at + 1]
        if marker == 0xD9:  # end of image; cameras append previews and films behind it
            break
        num_segments += 1
        _check_blocks(num_segments)
        if marker == 0xDA:
            num_scans += 1
            if num_scans > MAX_JPEG_SCANS:
                raise InvalidImage(f"the JPEG file has more than {MAX_JPEG_SCANS} scans; save it again as a plain JPEG")
        if marker in _JPEG_FRAMES and size is None:
            size = int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if size is None:
        raise InvalidImage("the JPEG file is damaged: it has no frame header")
    return ImageHeader("JPEG", *size)


def _gif_header(data: bytes) -> ImageHeader:
    """The canvas, grown to hold the first frame, as Pillow does."""
    if len(data) < 13:
        raise InvalidImage("the GIF file is damaged: its header is incomplete")
    at = 13
    if data[10] & 0x80:
        at += 3 << (data[10] & 7) + 1  # the global colour table
    num_blocks = 0
    while data[at : at + 1] == b"!":  # an extension: blocks up to an empty one
        at += 2
        while num_blocks <= MAX_BLOCKS and at < len(data) and data[at]:
            num_blocks += 1
            at += 1 + data[at]
        at += 1
        num_blocks += 1
        _check_blocks(num_blocks)
    frame = data[at:].lstrip(b"\0")[:9]
    if len(frame) < 9 or frame[:1] != b",":
        raise InvalidImage("the GIF file is damaged: it has no frame")
    left, top, width, height = (int.from_bytes(frame[i : i + 2], "little") for i in (1, 3, 5, 7))
    screen = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    return ImageHeader("GIF", max(screen[0], left + width), max(screen[1], top + height))


def _webp_header(data: bytes) -> ImageHeader:
    kind = data[12:16]
    if len(data) >= 30:
        if kind == b"VP8X":  # the canvas of an extended file: two 24-bit sizes less one
            return ImageHeader(
                "WEBP", int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
            )
        if kind == b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return ImageHeader("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        if kind == b"VP8 ":
            width, height = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
            return ImageHeader("WEBP", width & 0x3FFF, height & 0x3FFF)
    raise InvalidImage("the WebP file is damaged: it has no frame header")


def _check_blocks(count: int) -> None:
    if count > MAX_BLOCKS:
        raise InvalidImage(f"the image file has more than {MAX_BLOCKS:,} blocks; save it again without its metadata")
