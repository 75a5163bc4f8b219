"""An extra loss that teaches the vision tower what pictures are called; it reaches nothing else.

A tower that starts from nothing learns too slowly through the decoder alone: after 1.7M tokens all cells of a picture
were alike and names at chance. So the mean of a picture's features is put straight into the head, as if it were a
hidden state, twice: to predict the tokens of its answer, and to tell its answer from the answers to the other pictures
of the batch (as CLIP does, arXiv 2103.00020; the first alone learned which names are frequent, and features of all
pictures drifted together).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CONTRAST_SCALE = 20.0  # the differences between pictures start near 0.1


def contrast(pooled: Tensor, head: Tensor, named_images: Tensor, name_tokens: Tensor) -> Tensor:
    """Mean loss of telling n pictures (n, D) by their answers, over both directions.

    named_images, name_tokens (a,): token by token the answers and whose they are. Pictures with equal answers are not
    told apart.
    """
    answers = [tuple(name_tokens[named_images == i].tolist()) for i in range(len(pooled))]
    means = torch.stack([head[list(answer)].mean(0) for answer in answers])  # (n, D)
    scores = pooled @ means.T  # of each picture (row) for each answer (column)
    scores = (scores - scores.mean(0)) * CONTRAST_SCALE  # an answer that all pictures favour says nothing
    own = torch.arange(len(answers))
    scores = scores.masked_fill(_equal_answers(answers), float("-inf"))
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def _equal_answers(answers: Sequence[tuple[int, ...]]) -> Tensor:
    """(n, n): another picture has the same answer."""
    return torch.tensor([[a == b and i != j for j, b in enumerate(answers)] for i, a in enumerate(answers)])
