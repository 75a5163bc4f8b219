"""The angles of rotary embedding, for text and images: computed here once, so that the native core only multiplies."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from musespark.model.config import RopeScaling

Float32 = npt.NDArray[np.float32]


def rotary_frequencies(width: int, theta: float) -> Float32:
    """Angle per position of each pair, theta^(-2i/width), rounded to float32 where the reference rounds.

    At position 8,000 one unit in the last place of a frequency is half a thousandth of a radian.
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers = np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1.0) / powers


def scaled_frequencies(frequencies: Float32, scaling: RopeScaling | None) -> Float32:
    """Llama 3 scaling, rounded to float32 where the reference rounds (`network.layers.scale_frequencies`)."""
    if scaling is None:
        return frequencies
    one, factor = np.float32(1), np.float32(scaling.factor)
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    turns = np.float32(scaling.original_max_position_embeddings) * frequencies / np.float32(2 * math.pi)
    if low == high:  # Llama 4 Scout: a step
        return np.where(turns < low, frequencies / factor, frequencies)
    fast: Float32 = ((turns - low) / np.float32(scaling.high_freq_factor - scaling.low_freq_factor)).clip(0, 1)
    return (one - fast) * frequencies / factor + fast * frequencies
