"""Numbers from a seed that anyone can make again, bit for bit: weights and pictures.

Only what numpy promises to keep is used: the raw output of PCG64 seeded with a list of integers (NEP 19 promises no
such thing of `Generator.normal`). Everything after that is integer arithmetic and one multiplication in float64, so no
mathematical library takes part. The rule is written out in docs/conformance.md.
"""

from __future__ import annotations

import math
import re
import zlib

import numpy as np

from musespark.model.config import ModelConfig
from musespark.model.tensors import Shape, expected_tensors, is_transposed

# Four uniform 16-bit numbers sum to a bell of this standard deviation: sqrt(4 · (2^32 - 1) / 12).
_BELL_STD = math.sqrt((2**32 - 1) / 3)
_TABLE = re.compile(r"embed_tokens|position_embedding_table|positional_embedding_vlm")
_PLAIN_NORM = re.compile(r"(language_model\.norm|ln_pre|ln_post|norm1|norm2)\.weight$")  # of the Muse families


def raw(seed: int, name: str, count: int) -> np.ndarray:
    """(count,) uint64 of the stream that belongs to `name`."""
    return np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(count)


def bell(seed: int, name: str, shape: Shape) -> np.ndarray:
    """float64 of mean 0 and standard deviation 1, within ±3.47: the four 16-bit parts of each raw number, summed."""
    parts = raw(seed, name, math.prod(shape)).view("<u2").reshape(*shape, 4).astype(np.int64)
    return (parts.sum(-1) - 2 * 0xFFFF) / _BELL_STD


def integers(seed: int, name: str, low: int, high: int, count: int) -> list[int]:
    """`count` integers in [low, high)."""
    return [low + int(value) % (high - low) for value in raw(seed, name, count)]


def mean_and_std(name: str, shape: Shape, model_type: str) -> tuple[float, float]:
    """How the values of one tensor are spread: far from where training starts, so that each of them shows.

    Matrices keep the length of a row; norms are near the weight that changes nothing, which is 1 where the weight is
    used as it is and 0 where it is added to 1; residual gates reach the clamp of their formula.
    """
    if name.endswith("residual_gate.gate"):
        return 0.0, 1.2
    if len(shape) > 1 and not _TABLE.search(name):
        return 0.0, 1.0 / math.sqrt(shape[-2] if is_transposed(name) else shape[-1])
    plain = name.endswith(".weight") and "norm" in name and model_type == "llama4"
    return (1.0 if plain or _PLAIN_NORM.search(name) else 0.0), 0.3


def make_weights(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, float32."""
    tensors = {}
    for name, shape in expected_tensors(config).items():
        mean, std = mean_and_std(name, shape, config.model_type)
        tensors[name] = (mean + std * bell(seed, name, shape)).astype(np.float32)
    return tensors


def make_picture(seed: int, name: str, width: int, height: int, *, alpha: bool = False) -> np.ndarray:
    """(height, width, 3 or 4) uint8: slopes in every channel with noise upon them, so that no two filters agree."""
    channels = 4 if alpha else 3
    y, x = np.mgrid[:height, :width]
    noise = (
        (raw(seed, name, height * width * channels) % np.uint64(96)).astype(np.int64).reshape(height, width, channels)
    )
    slopes = [160 * x // width, 160 * y // height, 80 * x // width + 80 * y // height, 160 * (width - 1 - x) // width]
    return (np.stack(slopes[:channels], axis=-1) + noise).astype(np.uint8)
