"""The angles of rotary embedding, for text and images: computed here once, so that the native core only multiplies."""

from __future__ import annotations

import numpy as np


def rotary_frequencies(width: int, theta: float) -> list[float]:
    """Angle per position of each pair, theta^(-2i/width), rounded to float32 where the reference rounds.

    At position 8,000 one unit in the last place of a frequency is half a thousandth of a radian.
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers = np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    return (np.float32(1.0) / powers).tolist()
