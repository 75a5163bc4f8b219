"""Choosing tokens from logits.

Order: suppressed tokens are removed, and those that a grammar forbids; then penalties, then `logit_bias`;
`temperature`; `top_k`; `top_p` of what is left; `min_p` relative to the most likely token; one uniform number picks.
`temperature` 0 takes the largest after penalties and bias. Ties go to the lowest id. `frequency_penalty` and
`presence_penalty` look at generated tokens, `repetition_penalty` at prompt and generated tokens, as in vLLM.

Reported logprobs are those of the model: before grammar, penalties, bias, temperature and filters, over all tokens
except the suppressed ones, which do not exist for a client.

Nothing here looks at two rows at once except the argmax, so a token never depends on its neighbours in the batch.
Weights are float32 unless penalties or a bias change the logits, sums are float64. The whole vocabulary is looked at
for the largest, for the weights and their sum, and once to find the few that matter.
tests/engine/reference_sampler.py says the same in the obvious slow way.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from musespark.engine.grammar import Matcher
from musespark.engine.request import SEED_BITS, SampledToken, SamplingParams
from musespark.engine.runner import Float32
from musespark.errors import EngineFailed, MuseSparkError

log = logging.getLogger(__name__)

Float64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32] | Float64
Ids = npt.NDArray[np.intp]

FLOORS = (2.0**-7, 2.0**-13, 2.0**-22)  # of the largest weight
BLOCK = 256  # entries that are added up one by one, where there are more than
FEW = 4096
LEAST_TEMPERATURE = 1e-30  # differences of float32 divided by less are infinite anyway, or not numbers


class History:
    """Which tokens a choice has seen."""

    def __init__(self, prompt: Sequence[int], vocab_size: int) -> None:
        self.counts = np.zeros(vocab_size, dtype=np.int64)  # (V,) how often each token was generated
        self.seen = np.zeros(vocab_size, dtype=np.bool_)  # (V,) whether it is in the prompt or was generated
        self.seen[list(prompt)] = True

    def add(self, token: int) -> None:
        self.counts[token] += 1
        self.seen[token] = True


class SamplingState:
    """What sampling remembers of one choice: its random numbers, which tokens it has seen, its place in the grammar.

    Each choice has its own Philox generator keyed by (seed, index), and takes exactly one number per sampled token.
    """

    def __init__(
        self,
        params: SamplingParams,
        index: int,
        prompt: Sequence[int],
        vocab_size: int,
        matcher: Matcher | None = None,
    ) -> None:
        self.params = params
        self.matcher = matcher
        seed = secrets.randbits(SEED_BITS) if params.seed is None else params.seed % (1 << SEED_BITS)
        self.generator = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
        self._prompt = prompt
        self._vocab_size = vocab_size
        self._history: History | None = None

    @property
    def history(self) -> History | None:
        """Made when it is first needed: many choices may wait. None if no penalty looks at it."""
        if self._history is None and self.params.penalises:
            self._history = History(self._prompt, self._vocab_size)
        return self._history

    def count(self, token: int) -> None:
        """A token was generated."""
        if self.history is not None:
            self.history.add(token)
        if self.matcher is not None:
            self.matcher.consume(token)


class Sampler:
    """Samples for a whole batch. `suppressed` ids are never sampled, whatever a request asks for."""

    def __init__(self, suppressed: Iterable[int]) -> None:
        ids = np.array(sorted(suppressed), dtype=np.intp)
        runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1) if len(ids) else []
        self._suppressed = [slice(int(run[0]), int(run[-1]) + 1) for run in runs]  # mostly two: slices are quick

    def sample(self, logits: Float32, states: Sequence[SamplingState]) -> list[SampledToken | MuseSparkError | None]:
        """One token for each row of `logits` (R, V), which is changed; None where the logits are not numbers.

        What goes wrong while one row is sampled is an error in its place, and concerns no other row.
        """
        for run in self._suppressed:
            logits[:, run] = -np.inf
        greedy = logits.argmax(axis=1).tolist()  # the lowest id of equals; a NaN wins, and is caught below
        tokens: list[SampledToken | MuseSparkError | None] = []
        for row, best, state in zip(logits, greedy, states, strict=True):
            if not math.isfinite(row[best]):
                tokens.append(None)
                continue
            try:
                tokens.append(sample_row(row, best, state))
            except MuseSparkError as error:
                tokens.append(error)
            except Exception as error:
                log.exception("a token could not be chosen with %r", state.params)
                tokens.append(EngineFailed(f"a token could not be chosen ({type(error).__name__})"))
        return tokens


def sample_row(logits: Float32, greedy: int, state: SamplingState) -> SampledToken:
    """One token from `logits` (V,), whose largest is at `greedy`. Raises ArithmeticError, or InvalidSchema."""
    params = state.params
    possible = logits
    if state.matcher is not None:
        possible = masked(logits, state.matcher.allowed())
        greedy = int(possible.argmax())
        if possible[greedy] == -np.inf:
            raise ArithmeticError("the grammar allows none of the tokens that can be sampled")
    if params.temperature == 0.0 and not params.changes_logits:
        return with_logprobs(greedy, logits, params.logprobs)
    return with_logprobs(choose(possible, state), logits, params.logprobs)


def masked(logits: Float32, allowed: npt.NDArray[np.bool_]) -> Float32:
    """`logits` (V,) with -inf for all that is not allowed; `allowed` may be shorter."""
    possible = np.full_like(logits, -np.inf)
    np.copyto(possible[: len(allowed)], logits[: len(allowed)], where=allowed)
    return possible


def choose(logits: Floats, state: SamplingState) -> int:
    """One token from `logits` (V,), which stays as it is. Raises ArithmeticError if penalties make them no numbers."""
    params = state.params
    if params.changes_logits:
        logits = logits.astype(np.float64)
        if state.history is not None:
            penalise(logits, params, state.history.counts, state.history.seen)
        if params.logit_bias:
            logits[list(params.logit_bias)] += list(params.logit_bias.values())
    peak = logits.max()
    if not np.isfinite(peak):  # one NaN makes the largest NaN; those of -inf are suppressed
        raise ArithmeticError("penalties and biases have made logits that are not numbers")
    if params.temperature == 0.0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, as it should
        weights = np.exp((logits - peak) / max(params.temperature, LEAST_TEMPERATURE))  # 1.0 for the most likely
    uniform = state.generator.random()
    kept = filtered(weights, logits, params)
    return pick(weights, uniform) if kept is None else int(kept[pick(weights[kept], uniform)])


def filtered(weights: Floats, logits: Floats, params: SamplingParams) -> Ids | None:
    """The ids, ascending, that `top_k`, `top_p` and `min_p` leave; None if all three are off."""
    kept: Ids | None = None
    if 0 < params.top_k < len(weights):
        likely = likeliest(weights, lambda ids: len(ids) >= params.top_k)
        kept = np.sort(likely[largest(logits[likely], params.top_k)])
    if params.top_p < 1.0:
        kept = nucleus(weights, params.top_p) if kept is None else kept[nucleus(weights[kept], params.top_p)]
    if params.min_p > 0.0:
        kept = np.flatnonzero(weights >= params.min_p) if kept is None else kept[weights[kept] >= params.min_p]
    return kept


def likeliest(weights: Floats, are_enough: Callable[[Ids], bool]) -> Ids:
    """Ids, ascending, of all weights above a floor that leaves enough of them: mostly a few hundred."""
    peak = weights.max()
    for floor in FLOORS:
        ids = np.flatnonzero(weights >= floor * peak)
        if are_enough(ids):
            return ids
    return np.arange(len(weights))


def pick(weights: Floats, uniform: float) -> int:
    """The index at which a `uniform` in [0, 1) falls when each has its share of the sum; never one of weight 0."""
    if len(weights) <= FEW:
        cumulative = np.cumsum(weights, dtype=np.float64)
        return _fall(cumulative, uniform * cumulative[-1], weights)
    sums = np.add.reduceat(weights, np.arange(0, len(weights), BLOCK), dtype=np.float64)
    cumulative = np.cumsum(sums)
    target = uniform * cumulative[-1]
    block = _fall(cumulative, target, sums)
    inside = weights[block * BLOCK : (block + 1) * BLOCK]
    before = cumulative[block - 1] if block else 0.0
    return block * BLOCK + _fall(np.cumsum(inside, dtype=np.float64), target - before, inside)


def _fall(cumulative: Float64, target: float, weights: Floats) -> int:
    at = int(np.searchsorted(cumulative, target, side="right"))
    return at if at < len(weights) else int(np.flatnonzero(weights)[-1])  # the target may round up to the sum


def penalise(
    logits: Float64, params: SamplingParams, counts: npt.NDArray[np.int64], seen: npt.NDArray[np.bool_]
) -> None:
    """Lower the logits (V,) of tokens that appeared before, in place."""
    values = logits[seen]
    penalty = params.repetition_penalty
    with np.errstate(over="ignore"):  # a tiny penalty makes infinities, whose differences would not be numbers
        divided = np.minimum(values / penalty, np.finfo(np.float64).max)
    logits[seen] = np.where(values > 0, divided, values * penalty)
    logits -= params.frequency_penalty * counts
    logits -= params.presence_penalty * (counts > 0)


def largest(values: npt.NDArray[np.floating], count: int) -> Ids:
    """Indices of the `count` largest values, largest first, the lowest index of equals first."""
    if count < len(values):
        threshold = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(values >= threshold)
    else:
        candidates = np.arange(len(values))
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]


def nucleus(weights: Floats, top_p: float) -> Ids:
    """Indices, ascending, of the fewest, most likely entries whose share of the sum reaches `top_p`; at least one.

    Without sorting them all: the entries are counted in buckets of about the same weight, and only the bucket in which
    the share is reached is sorted.
    """
    bucket = buckets(weights)
    descending = np.cumsum(np.bincount(bucket, weights=weights)[::-1])  # the last bucket has the largest entry
    target = top_p * descending[-1]
    at = min(int(np.searchsorted(descending, target, side="left")), len(descending) - 1)
    border = len(descending) - 1 - at
    kept = bucket > border
    near = np.flatnonzero(bucket == border)
    values = weights[near]
    ordered = np.sort(values)[::-1]  # of values, not of ids: several times as fast
    rest = target - (descending[at - 1] if at else 0.0)
    count = int(np.searchsorted(np.cumsum(ordered, dtype=np.float64), rest, side="left")) + 1
    last = ordered[min(count, len(ordered)) - 1]
    above = values > last
    kept[near[above]] = True
    kept[near[values == last][: count - np.count_nonzero(above)]] = True  # the lowest ids of equals
    return np.flatnonzero(kept)


def buckets(weights: Floats) -> Ids:
    """A number for each weight (not negative) that grows with it: exponent and four bits, so 16 to a factor of 2."""
    if weights.dtype == np.float32:
        return (weights.view(np.uint32) >> 19).astype(np.intp)
    return (weights.view(np.uint64) >> 48).astype(np.intp)


def with_logprobs(token: int, logits: Float32, num_top: int | None) -> SampledToken:
    """The token with its log-probability and that of the `num_top` most likely; without any if that is None."""
    if num_top is None:
        return SampledToken(token)
    values = logits.astype(np.float64)
    peak = values.max()
    values -= peak + np.log(np.exp(values - peak).sum())
    best = [i for i in largest(values, num_top) if np.isfinite(values[i])] if num_top else []
    return SampledToken(token, float(values[token]), tuple((int(i), float(values[i])) for i in best))
