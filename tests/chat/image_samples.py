"""Image files made on the spot: pictures with structure, and files put together chunk by chunk."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture without symmetry, so that turning, mirroring or swapping channels shows."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int, *, depth: int = 8, colour: int = 2) -> bytes:
    """Signature and header chunk: all a file needs to claim a size."""
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png(rows: list[bytes], header: bytes, *extra: bytes) -> bytes:
    """A PNG from unfiltered rows, with extra chunks before the pixels."""
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"".join([header, *extra, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")])


def with_png_chunks(file: bytes, chunks: bytes) -> bytes:
    """The same PNG with chunks put in after its header."""
    return file[:33] + chunks + file[33:]
