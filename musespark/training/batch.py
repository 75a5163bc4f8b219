"""Rows put together into what one forward takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from musespark.chat.images import PatchedImage
from musespark.training.rows import PAD_SEGMENT, Row


@dataclass(frozen=True, slots=True)
class Batch:
    token_ids: Tensor  # (B, T) int64
    segments: Tensor  # (B, T) int64
    target_rows: Tensor  # (n,) int64, places in the flattened (B T) whose next token is learned
    targets: Tensor  # (n,) int64, those next tokens
    images: tuple[PatchedImage, ...]
    image_rows: Tensor  # (M,) int64, places in (B T) that the images' cells take, in order
    named_images: Tensor  # (a,) int64, an image for each of
    name_tokens: Tensor  # (a,) int64, the tokens of its answer
    num_tokens: int  # without padding


def make_batch(rows: Sequence[Row]) -> Batch:
    tokens = torch.from_numpy(np.stack([row.tokens for row in rows]).astype(np.int64))
    segments = torch.from_numpy(np.stack([row.segments for row in rows]).astype(np.int64))
    learned = torch.from_numpy(np.stack([row.loss for row in rows]))[:, 1:]
    learned = learned & (segments[:, 1:] == segments[:, :-1])  # a document's first token follows from nothing
    length = tokens.shape[1] - 1
    image_rows = [row.image_rows + i * length for i, row in enumerate(rows)]
    answers = [answer for row in rows for answer in row.image_answers]
    named = np.repeat(np.arange(len(answers)), [len(answer) for answer in answers]).astype(np.int64)
    return Batch(
        token_ids=tokens[:, :-1].contiguous(),
        segments=segments[:, :-1].contiguous(),
        target_rows=learned.flatten().nonzero()[:, 0],
        targets=tokens[:, 1:][learned],
        images=tuple(image for row in rows for image in row.images),
        image_rows=torch.from_numpy(np.concatenate(image_rows)),
        named_images=torch.from_numpy(named),
        name_tokens=torch.from_numpy(np.concatenate([np.empty(0), *answers]).astype(np.int64)),
        num_tokens=int((segments[:, :-1] != PAD_SEGMENT).sum()),
    )


def make_batches(rows: Sequence[Row], rows_per_forward: int) -> tuple[list[Batch], int]:
    """Batches of `rows_per_forward` rows, and the number of learned tokens in all of them."""
    batches = [make_batch(rows[start : start + rows_per_forward]) for start in range(0, len(rows), rows_per_forward)]
    return batches, sum(len(batch.targets) for batch in batches)
