"""Runners without a model, for tests of everything above them. They keep `musespark.engine.runner.Runner`'s promises.

`HashRunner` is a two-layer network in miniature: layer 0 sees a sliding window of tokens, or their own chunk, layer 1
sees everything, and logits are a hash of all that. A wrong page, a missing page or a page of somebody else changes
the output, and `hash_continuation` computes the right output from the tokens alone, without pages. `ScriptedRunner`
says what it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from musespark.chat.images import PatchedImage
from musespark.engine.runner import NO_PAGE, PAGE_SIZE, Batch, Float32, WholeImage
from musespark.errors import EngineFailed
from musespark.model.config import ModelConfig
from musespark.model.presets import preset

UInt64 = npt.NDArray[np.uint64]

NOT_WRITTEN = 0  # no hash used here is 0 in practice: 2^-64 each


def toy_config(**text: Any) -> ModelConfig:
    """The preset `toy`: 320 tokens, a window of 128, 1,024 positions, one sliding and one full layer."""
    config = preset("toy")
    return replace(config, text=replace(config.text, **text))


def chunked_config(chunk: int) -> ModelConfig:
    """The same, but the first layer sees its own chunk."""
    kinds = ("chunked_attention", "full_attention")
    return toy_config(layer_types=kinds, sliding_window=0, attention_chunk_size=chunk)


def local_keys(config: ModelConfig, position: int) -> npt.NDArray[np.int64]:
    """The keys that a query of the first layer sees."""
    if config.text.layer_types[0] == "chunked_attention":
        return np.arange(position // config.text.attention_chunk_size * config.text.attention_chunk_size, position + 1)
    return np.arange(max(0, position - config.text.sliding_window + 1), position + 1)


def mix(values: npt.ArrayLike) -> UInt64:
    """The finalizer of splitmix64: every bit of the input changes about half of the output."""
    x = np.asarray(values, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def digest(values: UInt64, positions: npt.NDArray[np.int64]) -> np.uint64:
    """One number for what stands at which position."""
    return mix(mix(values ^ mix(positions.astype(np.uint64))).sum(dtype=np.uint64)[None])[0]


def embedding(row: Float32) -> np.uint64:
    """What the network sees of one row of image features."""
    return mix(np.frombuffer(row.astype(np.float32).tobytes(), dtype=np.uint32).astype(np.uint64).sum()[None] + 7)[0]


def logits_of(state: np.uint64, vocab_size: int) -> Float32:
    """Logits (V,) in [-4, 4) that depend on every bit of `state`."""
    bits = mix(state ^ mix(np.arange(vocab_size)))
    return ((bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 21) - 4).astype(np.float32)


class HashRunner:
    """Pages hold one number a token. Reading a page that is missing or was never written is an AssertionError."""

    def __init__(self, *, num_full_pages: int = 64, num_sliding_pages: int = 64, config: ModelConfig | None = None):
        self.config = config or toy_config()
        self.num_full_pages = num_full_pages
        self.num_sliding_pages = num_sliding_pages
        self.batches: list[Batch] = []
        self.num_images_encoded = 0
        self.closed = False
        self._sliding = np.full((num_sliding_pages, PAGE_SIZE), NOT_WRITTEN, dtype=np.uint64)
        self._full = np.full((num_full_pages, PAGE_SIZE), NOT_WRITTEN, dtype=np.uint64)

    def forward(self, batch: Batch) -> Float32:
        if self.closed:
            raise EngineFailed("the runner is closed")
        self.batches.append(batch)
        values = mix(batch.token_ids)
        for row, features in zip(batch.embed_rows, batch.embeds, strict=True):
            values[row] = embedding(features)
        logits = []
        for s in range(len(batch.query_start) - 1):
            rows = range(batch.query_start[s], batch.query_start[s + 1])
            full, sliding = batch.full_block_table[s], batch.sliding_block_table[s]
            for row in rows:
                position = batch.positions[row]
                self._sliding[sliding[position // PAGE_SIZE], position % PAGE_SIZE] = values[row]
            for row in rows:
                position = batch.positions[row]
                seen = self._read(self._sliding, sliding, local_keys(self.config, position))
                self._full[full[position // PAGE_SIZE], position % PAGE_SIZE] = seen
            for row in rows:
                if row in batch.logit_rows:
                    state = self._read(self._full, full, np.arange(batch.positions[row] + 1))
                    logits.append(logits_of(state, self.config.text.vocab_size))
        return np.array(logits, dtype=np.float32).reshape(-1, self.config.text.vocab_size)

    def encode_image(self, image: PatchedImage) -> Float32:
        self.num_images_encoded += 1
        return image_features(image, self.config.text.hidden_size)

    def start_image(self, image: PatchedImage) -> WholeImage:
        return WholeImage(self.encode_image, image)

    def close(self) -> None:
        self.closed = True

    @staticmethod
    def _read(memory: UInt64, table: npt.NDArray[np.int32], positions: npt.NDArray[np.int64]) -> np.uint64:
        pages = table[positions // PAGE_SIZE]
        assert (pages != NO_PAGE).all(), "a page that a query sees is not in the table"
        values = memory[pages, positions % PAGE_SIZE]
        assert (values != NOT_WRITTEN).all(), "a query sees a page that was never written"
        return digest(values, positions)


def image_features(image: PatchedImage, hidden_size: int) -> Float32:
    """Features (num_tokens, D) that differ in each row and for each image."""
    seed = int.from_bytes(image.digest[:8], "little")
    return np.random.default_rng(seed).standard_normal((image.num_tokens, hidden_size), dtype=np.float32)


def hash_continuation(
    prompt: Sequence[int],
    num_tokens: int,
    *,
    config: ModelConfig | None = None,
    images: Sequence[PatchedImage] = (),
    image_spans: Sequence[tuple[int, int]] = (),
    suppressed: Sequence[int] = (),
) -> list[int]:
    """The greedy continuation that a HashRunner must give, from the whole list of tokens each time."""
    config = config or toy_config()
    values = list(mix(np.array(prompt)))
    for image, (start, _) in zip(images, image_spans, strict=True):
        for offset, row in enumerate(image_features(image, config.text.hidden_size)):
            values[start + offset] = embedding(row)
    seen: list[np.uint64] = []
    tokens: list[int] = []
    while True:
        for position in range(len(seen), len(values)):
            keys = local_keys(config, position)
            seen.append(digest(np.array(values)[keys], keys))
        if len(tokens) == num_tokens:
            return tokens
        logits = logits_of(digest(np.array(seen), np.arange(len(seen))), config.text.vocab_size)
        logits[[config.image_token_id, *suppressed]] = -np.inf
        tokens.append(int(logits.argmax()))
        values.append(mix(tokens[-1:])[0])


class ScriptedRunner(HashRunner):
    """After the token at position p, `script(p)` is by far the most likely."""

    def __init__(self, script: Callable[[int], int], **options: int) -> None:
        super().__init__(**options)
        self.script = script

    def forward(self, batch: Batch) -> Float32:
        logits = super().forward(batch)
        for line, row in zip(logits, batch.logit_rows, strict=True):
            line[self.script(int(batch.positions[row]))] = 100.0
        return logits


class FailingRunner(HashRunner):
    """Raises in the calls of `forward` whose numbers (from 0) are in `fail_on`, after half of the batch was written."""

    def __init__(self, fail_on: Sequence[int] | range, **options: int) -> None:
        super().__init__(**options)
        self.fail_on = fail_on
        self.num_calls = 0

    def forward(self, batch: Batch) -> Float32:
        self.num_calls += 1
        self._sliding[batch.sliding_block_table.max()] ^= np.uint64(1)
        if self.num_calls - 1 in self.fail_on:
            raise RuntimeError("scripted failure")
        self._sliding[batch.sliding_block_table.max()] ^= np.uint64(1)
        return super().forward(batch)
