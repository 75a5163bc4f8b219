"""Gives the memory of large requests back: to Python when they were refused, to the system when they are over."""

from __future__ import annotations

import ctypes
import traceback

LARGE_BYTES = 4 << 20
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def return_large_blocks() -> None:
    """Have malloc return every block of `LARGE_BYTES` to the system as soon as it is free.

    glibc alone does so only for blocks larger than the largest it has seen, up to 32 MiB: after three bodies of 31 MiB
    at once it kept 200 MB. Other C libraries, which have no such option, are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def forget_frames(error: BaseException) -> None:
    """Clear the variables of the functions that `error` came through.

    A task holds its error, the error its frames, and one of these the task: such a cycle would keep a refused request
    of tens of megabytes until the garbage collector happens to look at it.
    """
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__context__
