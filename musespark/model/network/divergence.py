"""How far a quantised checkpoint is from its original: after every layer, and in what it predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from musespark.errors import CheckpointError
from musespark.model.checkpoint import Checkpoint
from musespark.model.network.streaming import StreamedNetwork

PREDICTIONS_AT_ONCE = 128  # rows of logits, up to 200,000 wide


@dataclass(frozen=True, slots=True)
class LayerDivergence:
    """own_error: of the layer alone, given what the original layer reads, ‖L'(x) - L(x)‖ / ‖L(x)‖. hidden_error: of
    the stream after it, with all layers before it quantised as well. kl and top1_agreement: as below, were the
    original's head to read the two streams here.
    """

    layer: int
    own_error: float
    hidden_error: float
    kl: float
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """kl: mean of KL(original ‖ quantised) over the tokens, in nats. top1_agreement: how often both find the same
    token most likely, 0 to 1.
    """

    num_tokens: int
    kl: float
    top1_agreement: float
    layers: tuple[LayerDivergence, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def compare(
    original: Checkpoint | Path,
    quantized: Checkpoint | Path,
    token_ids: np.ndarray,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Divergence:
    """Both checkpoints on the text token_ids (B, T) int64. Holds a layer of each, and the head, in float32.

    progress(done, all) counts layers and the head. Raises CheckpointError.
    """
    one, other = StreamedNetwork(original), StreamedNetwork(quantized)
    if one.num_layers != other.num_layers or one.config.text.vocab_size != other.config.text.vocab_size:
        folders = one.checkpoint.folder, other.checkpoint.folder
        raise CheckpointError(f"{folders[1]} is not a quantised {folders[0]}: they differ in layers or in vocabulary")
    tokens = torch.from_numpy(token_ids)
    hidden, other_hidden = one.embed(tokens), other.embed(tokens)
    head = _Head(one)
    layers: list[LayerDivergence] = []
    for index in range(one.num_layers):
        if progress is not None:
            progress(index, one.num_layers + 1)
        other_layer = other.layer(index)
        own = other.run(other_layer, index, hidden)
        other_hidden = other.run(other_layer, index, other_hidden)
        del other_layer
        hidden = one.run(one.layer(index), index, hidden)
        kl, agreement = _predictions(head, hidden, head, other_hidden)
        own_error, hidden_error = _relative_error(own, hidden), _relative_error(other_hidden, hidden)
        layers.append(LayerDivergence(index, own_error, hidden_error, kl, agreement))
    if progress is not None:
        progress(one.num_layers, one.num_layers + 1)
    kl, agreement = _predictions(head, hidden, _Head(other), other_hidden)
    return Divergence(token_ids.size, kl, agreement, tuple(layers))


class _Head:
    """The final norm and the head of a checkpoint, from the stream to log-probabilities."""

    def __init__(self, stream: StreamedNetwork) -> None:
        self._network = stream.network
        stream.keep(self._network.text_model.norm)
        stream.keep(self._network.head)

    def __call__(self, hidden: Tensor) -> Tensor:
        """(n, D) -> (n, V)"""
        return F.log_softmax(self._network.logits(self._network.text_model.norm(hidden)), dim=-1)


def _relative_error(values: Tensor, expected: Tensor) -> float:
    return float((values - expected).norm() / expected.norm())


def _predictions(head: _Head, hidden: Tensor, other_head: _Head, other_hidden: Tensor) -> tuple[float, float]:
    """Mean KL divergence of the second from the first, and how often the most likely token is the same."""
    kl, num_same = 0.0, 0
    rows = zip(
        hidden.flatten(0, 1).split(PREDICTIONS_AT_ONCE),
        other_hidden.flatten(0, 1).split(PREDICTIONS_AT_ONCE),
        strict=True,
    )
    for some, others in rows:
        expected, found = head(some), other_head(others)
        kl += float((expected.exp() * (expected - found)).sum())
        num_same += int((expected.argmax(-1) == found.argmax(-1)).sum())
    num_tokens = hidden.shape[0] * hidden.shape[1]
    return kl / num_tokens, num_same / num_tokens
