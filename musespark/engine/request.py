"""The nouns of the engine: what a client asks for (`Request`), what comes out (`StepEvent`), what it used (`Usage`).

Everything here is checked when it is made and never changes afterwards; what changes while a request runs is in
sequence.py. Meanings and ranges of the sampling fields are those of the OpenAI API, with vLLM's `top_k`, `min_p` and
`repetition_penalty` beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from musespark.engine.allowance import Allowance
from musespark.errors import InvalidRequest, MuseSparkError

if TYPE_CHECKING:
    from musespark.chat.images import PatchedImage
    from musespark.engine.grammar import Grammar

FinishReason = Literal["stop", "length", "budget", "cancelled"]  # budget: no more tokens were paid for

MAX_CHOICES = 16  # a single request must not be able to fill the batch many times over (CVE-2026-34756)
MAX_LOGPROBS = 20
MAX_LOGIT_BIASES = 1024
LARGEST_INT = (1 << 31) - 1
SEED_BITS = 64

# field -> (low, high, is the low end allowed)
FLOAT_RANGES: dict[str, tuple[float, float, bool]] = {
    "temperature": (0.0, 2.0, True),
    "top_p": (0.0, 1.0, True),
    "min_p": (0.0, 1.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
    "presence_penalty": (-2.0, 2.0, True),
    "repetition_penalty": (0.0, 10.0, False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen; the order in which the fields act is written in sampler.py.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. `logprobs` None is off, otherwise the
    number of alternatives (0 to 20) reported beside the chosen token. `seed` None means a fresh random one. With
    `ignore_eos` a stop token is an ordinary token. Raises InvalidRequest naming the field.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, (low, high, low_allowed) in FLOAT_RANGES.items():
            _check_float(name, getattr(self, name), low, high, low_allowed)
        _check_int("max_tokens", self.max_tokens, 1, LARGEST_INT)
        _check_int("top_k", self.top_k, 0, LARGEST_INT)
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.seed is not None:
            _check_int("seed", self.seed, -(1 << (SEED_BITS - 1)), (1 << SEED_BITS) - 1)
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise InvalidRequest(
                f"logit_bias has {len(self.logit_bias):,} entries, at most {MAX_LOGIT_BIASES:,} are allowed",
                param="logit_bias",
            )
        for token, bias in self.logit_bias.items():
            _check_int("logit_bias", token, 0, LARGEST_INT)
            _check_float("logit_bias", bias, -100.0, 100.0)

    @property
    def changes_logits(self) -> bool:
        """Whether anything but the temperature and the filters touches the logits."""
        return bool(self.logit_bias) or self.penalises

    @property
    def penalises(self) -> bool:
        return self.frequency_penalty != 0.0 or self.presence_penalty != 0.0 or self.repetition_penalty != 1.0


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One generated token. `logprob` and `top` (most likely first) only if `SamplingParams.logprobs` asked for them."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Output(Protocol):
    """Turns the tokens of one choice into what its client wants to see. Called in the engine's thread only.

    The engine calls `push` for every generated token except a stop token that ends the choice, `finish` once at the end
    for whatever reason, and `take` after each of them. An exception from any of them ends this request alone.
    """

    @property
    def reasoning_tokens(self) -> int:
        """How many of the tokens so far were reasoning."""
        ...

    def push(self, token: SampledToken) -> FinishReason | None:
        """Add one token; "stop" ends the choice here (a stop string was completed)."""
        ...

    def finish(self, stop_token: int | None) -> None:
        """No more tokens: release what was held back. `stop_token` is the one that ended the choice, if one did."""
        ...

    def take(self) -> list[object]:
        """The deltas since the last call, of any type: the engine hands them on unseen."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt and what to do with it.

    `image_spans[i]` is the [start, end) of the rows in `prompt` that hold `images[i]`, ascending. `salt` is secret to
    the organisation: prefixes are shared only under the same one. `make_output(index)` is called once per choice. Of
    two waiting requests the lower `priority` goes first, then the earlier. Every choice keeps to the `grammar`, whose
    end is a stop token of `sampling`. `tenant` is whom the engine is fair to: the organisation. Never more tokens are
    generated than the `allowance` grants; None is no such limit. Raises InvalidRequest.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    make_output: Callable[[int], Output]
    images: tuple[PatchedImage, ...] = ()
    image_spans: tuple[tuple[int, int], ...] = ()
    salt: bytes = b""
    n: int = 1
    priority: int = 0
    grammar: Grammar | None = None
    tenant: str = ""
    allowance: Allowance | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", tuple(self.prompt))
        if not self.prompt:
            raise InvalidRequest("the prompt has no tokens; send at least one message with content", param="messages")
        _check_int("n", self.n, 1, MAX_CHOICES)
        _check_int("priority", self.priority, -LARGEST_INT, LARGEST_INT)
        if len(self.images) != len(self.image_spans):
            raise InvalidRequest(f"{len(self.images)} images have {len(self.image_spans)} places in the prompt")
        edge = 0
        for image, (start, end) in zip(self.images, self.image_spans, strict=True):
            if not edge <= start < end <= len(self.prompt) or end - start != image.num_tokens:
                raise InvalidRequest(
                    f"an image of {image.num_tokens} tokens can't fill the rows {start}..{end} of a prompt of "
                    f"{len(self.prompt)} tokens whose rows before {edge} are taken"
                )
            edge = end

    @property
    def image_tokens(self) -> int:
        return sum(end - start for start, end in self.image_spans)

    def image_tokens_before(self, position: int) -> int:
        """Rows of images among the first `position` tokens of the prompt."""
        return sum(max(0, min(end, position) - start) for start, end in self.image_spans)

    @property
    def pixel_bytes(self) -> int:
        """Memory of the images, which the request holds to its end: 9.4 KB for each of their tokens."""
        return sum(image.patches.nbytes for image in self.images)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, as far as they were really processed.

    `prompt_tokens` is the whole prompt, once however large `n` is, unless the request ended before all of it was
    computed: then the part that was. `cached_tokens` of it came from the prefix cache when the request first started,
    `image_tokens` of it are rows of images, `cached_image_tokens` of it are both. `completion_tokens` adds up all
    choices and counts the stop token that ended one; `reasoning_tokens` are part of it. What is computed again after a
    preemption counts once.
    """

    prompt_tokens: int
    cached_tokens: int
    image_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_image_tokens: int = 0

    @property
    def computed_text_tokens(self) -> int:
        """With `computed_image_tokens` and `cached_tokens` a partition of the prompt."""
        return self.prompt_tokens - self.cached_tokens - self.computed_image_tokens

    @property
    def computed_image_tokens(self) -> int:
        return self.image_tokens - self.cached_image_tokens

    @property
    def visible_tokens(self) -> int:
        """With `reasoning_tokens` a partition of the completion."""
        return self.completion_tokens - self.reasoning_tokens


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a request went, in seconds; None for what it did not get to.

    `queue_s` until it started, `prompt_s` from there to its first token, `completion_s` from its first token to its
    last. A preemption lies within the latter two.
    """

    queue_s: float | None
    prompt_s: float | None
    completion_s: float | None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """New deltas of choice `index`, in order."""

    request_id: str
    index: int
    deltas: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The last event of choice `index`."""

    request_id: str
    index: int
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """The last event of a request that ended well or was cancelled."""

    request_id: str
    usage: Usage
    timing: Timing


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """The last event of a request that the engine couldn't finish. `usage` says what it had used."""

    request_id: str
    error: MuseSparkError
    usage: Usage


@dataclass(frozen=True, slots=True)
class AllowanceEvent:
    """Less than half of the last grant is left: whoever wants the request to go on without a pause grants more now.

    Once per grant, and not when it covers all that the request can generate.
    """

    request_id: str
    completion_tokens: int
    granted: int


StepEvent = TokenEvent | FinishEvent | UsageEvent | FailedEvent | AllowanceEvent


def _check_float(name: str, value: Any, low: float, high: float, low_allowed: bool = True) -> None:
    # isfinite first: NaN passes every < and > (CVE-2026-54235). An int too large for a float is not finite either.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or abs(value) > LARGEST_INT or not math.isfinite(value) or not low <= value <= high:
        raise InvalidRequest(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}", param=name)
    if value == low and not low_allowed:
        raise InvalidRequest(f"{name} is {value!r}; it must be above {low:g}", param=name)


def _check_int(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name} is {value!r}; it must be a whole number from {low:,} to {high:,}", param=name)
