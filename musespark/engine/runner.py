"""What a runner is: the one thing that turns a batch of tokens into logits.

The engine owns page *ids*; the runner owns the *memory* behind them. Pages come in two groups, because the layers do:
a "full" page holds K and V of 64 tokens for all full-attention layers, a "sliding" page the same for all local layers:
those with a sliding window, or, in Llama 4, those that see the tokens of their own chunk only. Full pages are kept as
long as the sequence lives; sliding pages only while a later token can still see them.
`NativeRunner` (native.py) is the CPU implementation; the tests have one over the reference network, and a fake that
hashes what it can see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

    from musespark.chat.images import PatchedImage
    from musespark.model.config import ModelConfig

PAGE_SIZE = 64  # tokens a page, in both groups
NO_PAGE = -1  # in a block table: nothing here (out of the window, or past the last token)

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """N tokens of S sequences, concatenated, at consecutive positions within a sequence; every array C-contiguous.

    K and V of all N tokens are written to their pages before anything attends, so a token sees those of its own batch.
    In full layers a query at position q sees every k <= q of its sequence, in sliding layers q - sliding_window < k,
    in chunked layers those of its own chunk: k // attention_chunk_size == q // attention_chunk_size.
    The caller promises that every page which a query of the batch can see is in the tables.
    """

    token_ids: Int32  # (N,)
    positions: Int64  # (N,) absolute, from 0
    query_start: Int32  # (S + 1,) rows query_start[s]:query_start[s + 1] belong to sequence s
    full_block_table: Int32  # (S, P) page id of positions 64p .. 64p + 63, or NO_PAGE
    sliding_block_table: Int32  # (S, P) the same for the sliding group
    embed_rows: Int32  # (M,) rows whose token embedding is replaced by image features, ascending
    embeds: Float32  # (M, D) those features; they replace the embedding after its norm and are not normed again
    logit_rows: Int32  # (R,) rows whose logits are wanted, ascending


class ImageEncoding(Protocol):
    """An image on its way to its features. Dropping it abandons it."""

    @property
    def progress(self) -> float:
        """The share of the work that is done, from 0 to 1."""
        ...

    def run(self, budget_s: float | None = None) -> Float32 | None:
        """Work for about `budget_s` seconds, a small unit at least; None: to the end. The features once they are done,
        the same bits however the work was cut."""
        ...


class WholeImage:
    """The encoding of a runner that can't cut its work: all of it in the first `run`."""

    def __init__(self, encode: Callable[[PatchedImage], Float32], image: PatchedImage) -> None:
        self._encode = encode
        self._image = image
        self._features: Float32 | None = None

    @property
    def progress(self) -> float:
        return 0.0 if self._features is None else 1.0

    def run(self, budget_s: float | None = None) -> Float32:
        if self._features is None:
            self._features = self._encode(self._image)
        return self._features


class Runner(Protocol):
    """A model with paged memory. One thread at a time calls it.

    A token's logits must not depend on what else is in the batch, on chunking or on the number of threads, bit for bit:
    that is what makes greedy output independent of its neighbours. `TorchRunner` (torch_runner/, for a GPU) keeps this
    to float rounding only, because the libraries there choose their kernels by the shape of a batch.
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def num_full_pages(self) -> int: ...

    @property
    def num_sliding_pages(self) -> int: ...

    def forward(self, batch: Batch) -> Float32:
        """Logits (R, V) float32 of `batch.logit_rows`. The caller owns the result and may write to it."""
        ...

    def encode_image(self, image: PatchedImage) -> Float32:
        """Features (num_tokens, D) float32 of one image, already normed as text embeddings are."""
        ...

    def start_image(self, image: PatchedImage) -> ImageEncoding:
        """The same in pieces, so that running streams need not wait for all of it. Raises as `encode_image` does."""
        ...

    def close(self) -> None:
        """Free the memory. Further calls raise EngineFailed."""
        ...
