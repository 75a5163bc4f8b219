"""A text file as windows of tokens: what a quantisation is calibrated with, and what it is measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from musespark.chat.tokenizer import Tokenizer
from musespark.errors import CheckpointError, DataError
from musespark.model.config import ModelConfig

WINDOW = 512  # tokens, the first of them begin-of-text where the model has one
MOST_WINDOWS = 32  # 16,384 tokens; the bundled model gains most of it from an eighth, see docs/quantization.md
FEWEST_TOKENS = 64
MAX_TEXT_BYTES = 16 << 20


def read_windows(folder: Path, text: Path, most: int = MOST_WINDOWS) -> np.ndarray:
    """At most `most` windows of the file `text`, evenly spread, in tokens of the checkpoint: (B, T) int64.

    T is WINDOW, or less for a text that fills no window. Raises DataError for a text that can't be used,
    CheckpointError for a tokenizer that doesn't fit the model.
    """
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    config = ModelConfig.from_file(folder / "config.json").text
    token_ids = np.array(tokenizer.encode(_read(text)), np.int64)
    if len(token_ids) < FEWEST_TOKENS:
        raise DataError(f"{text} has {len(token_ids)} tokens; at least {FEWEST_TOKENS} are needed, better thousands")
    if token_ids.max() >= config.vocab_size:
        raise CheckpointError(
            f"tokenizer.json in {folder} gives the token {token_ids.max():,}, but vocab_size is {config.vocab_size:,}"
        )
    begin = [config.bos_token_id] if config.bos_token_id < config.vocab_size else []
    length = min(WINDOW - len(begin), len(token_ids))
    num_windows = len(token_ids) // length
    chosen = np.linspace(0, num_windows - 1, min(most, num_windows)).round().astype(np.int64)
    windows = token_ids[: num_windows * length].reshape(num_windows, length)[chosen]
    return np.hstack([np.full((len(windows), len(begin)), begin or 0, np.int64), windows])


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from None
    if len(data) > MAX_TEXT_BYTES:
        raise DataError(f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB; give a part of it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start:,} is {data[error.start]:#04x}") from None
