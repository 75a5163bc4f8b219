"""An image named on the command line, as bytes."""

from __future__ import annotations

from pathlib import Path

from musespark.chat.image_files import MAX_FILE_BYTES
from musespark.errors import InvalidImage


def read_image(path: Path) -> bytes:
    """The bytes of a file, its size checked before it is read: a device would never end. Raises InvalidImage."""
    if str(path).startswith(("http:", "https:")):
        raise InvalidImage(f"{path}: remote images are not fetched; save the image as a file first")
    if not path.is_file():
        raise InvalidImage(f"{path} is not a file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidImage(f"{path} has {path.stat().st_size:,} bytes; the limit is {MAX_FILE_BYTES:,}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidImage(f"{path} can't be read: {error.strerror}") from None
