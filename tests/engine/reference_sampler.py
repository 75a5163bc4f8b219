"""Sampling said in the obvious way: one Python loop per rule, over the whole vocabulary, for one row.

Follows the order documented in musespark/engine/sampler.py. Gives the distribution instead of a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from musespark.engine.request import SamplingParams


def distribution(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Iterable[int] = (),
    generated: Sequence[int] = (),
    suppressed: Iterable[int] = (),
) -> list[float]:
    """The probability of each token to come next."""
    x = [float(value) for value in logits]
    for token in set(prompt) | set(generated):
        x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
    for token in set(generated):
        x[token] -= params.frequency_penalty * list(generated).count(token)
        x[token] -= params.presence_penalty
    for token, bias in params.logit_bias.items():
        x[token] += bias
    allowed = [token for token in range(len(x)) if token not in set(suppressed)]
    ranked = sorted(allowed, key=lambda token: (-x[token], token))
    if params.temperature == 0:
        return [1.0 if token == ranked[0] else 0.0 for token in range(len(x))]
    best = x[ranked[0]]
    weight = {token: math.exp((x[token] - best) / params.temperature) for token in ranked}
    if params.top_k > 0:
        ranked = ranked[: params.top_k]
    kept, reached = [], 0.0
    total = sum(weight[token] for token in ranked)
    for token in ranked:
        kept.append(token)
        reached += weight[token] / total
        if reached >= params.top_p:
            break
    if params.top_p == 1:
        kept = ranked
    kept = [token for token in kept if weight[token] >= params.min_p]
    total = sum(weight[token] for token in kept)
    return [weight[token] / total if token in kept else 0.0 for token in range(len(x))]


def log_softmax(logits: Sequence[float], suppressed: Iterable[int] = ()) -> list[float]:
    """The model's own log-probabilities, over all tokens except the suppressed ones."""
    banned = set(suppressed)
    best = max(value for token, value in enumerate(logits) if token not in banned)
    total = sum(math.exp(value - best) for token, value in enumerate(logits) if token not in banned)
    return [-math.inf if i in banned else value - best - math.log(total) for i, value in enumerate(logits)]
