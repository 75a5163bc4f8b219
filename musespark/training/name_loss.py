"""A loss that teaches the vision tower what pictures are called; it reaches nothing else.

A tower that starts from nothing learns too slowly through the decoder alone, and its features drift together: after
3M tokens the pictures of a batch shared 99.9 % of the mean square. So the mean of a picture's features is compared with
the input embeddings of the words of its answer, and must tell the picture's answer from the answers to the others of
the batch (as CLIP does, arXiv 2103.00020); a floor under the spread of the features keeps them apart (VICReg, arXiv
2105.04906). A picture then reads, to the decoder, somewhat like the words of its name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CONTRAST_SCALE = 14.0  # over the root of the width: brings the scores of a fresh tower to a few nats
SPREAD_FLOOR = 0.4  # standard deviation of a feature over a batch; a fresh tower has 0.5


def contrast(pooled: Tensor, words: Tensor, named_images: Tensor, name_tokens: Tensor) -> Tensor:
    """Mean loss of telling n pictures (n, D) by their answers, over both directions.

    named_images, name_tokens (a,): token by token the answers and whose they are; words (a, D): the embeddings of these
    tokens. Pictures with equal answers are not told apart.
    """
    answers = [tuple(name_tokens[named_images == i].tolist()) for i in range(len(pooled))]
    means = torch.stack([words[named_images == i].mean(0) for i in range(len(pooled))])  # (n, D)
    scores = pooled @ means.T  # of each picture (row) for each answer (column)
    # An answer that all pictures favour says nothing.
    scores = (scores - scores.mean(0)) * (CONTRAST_SCALE / pooled.shape[1] ** 0.5)
    own = torch.arange(len(answers))
    scores = scores.masked_fill(_equal_answers(answers), float("-inf"))
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def spread(pooled: Tensor) -> Tensor:
    """What is missing of SPREAD_FLOOR in the standard deviation of each feature over n pictures (n, D), on average."""
    if len(pooled) < 2:
        return torch.zeros(())
    deviation = (pooled.var(0) + 1e-6).sqrt()
    return (SPREAD_FLOOR - deviation).clamp(min=0).mean()


def _equal_answers(answers: Sequence[tuple[int, ...]]) -> Tensor:
    """(n, n): another picture has the same answer."""
    return torch.tensor([[a == b and i != j for j, b in enumerate(answers)] for i, a in enumerate(answers)])
