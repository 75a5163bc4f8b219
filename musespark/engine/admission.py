"""What may enter the queue: what this model can read, what fits into its memory, and not too much of it."""

from __future__ import annotations

from collections import Counter

import numpy as np

from musespark.engine.kv_cache import KVCache
from musespark.engine.request import Request
from musespark.errors import ContextTooLong, InvalidImage, InvalidRequest
from musespark.model.config import ModelConfig

MIN_RETRY_MS = 100
MAX_RETRY_MS = 60_000  # the OpenAI SDK ignores a longer hint
SMOOTHING = 0.2  # weight of the newest interval


def context_length(config: ModelConfig, cache: KVCache) -> int:
    """The most tokens, prompt and completion together, that a request may have when it is alone."""
    return min(config.text.max_position_embeddings, cache.context_length)


def check_request(request: Request, config: ModelConfig) -> None:
    """Raise InvalidRequest for what this model can't read: foreign token ids, images without a vision tower."""
    vocab_size = config.text.vocab_size
    if max(request.prompt) >= vocab_size or min(request.prompt) < 0:
        raise InvalidRequest(f"the prompt has a token outside the vocabulary of {vocab_size:,}", param="messages")
    biased = max(request.sampling.logit_bias, default=0)
    if biased >= vocab_size:
        message = f"logit_bias names the token {biased:,}; this model's ids end at {vocab_size - 1:,}"
        raise InvalidRequest(message, param="logit_bias")
    if config.image_tower is None:
        if request.images:
            raise InvalidImage("this model reads text only; leave out the image", param="messages")
        return
    if config.tile_vision is not None:
        side = config.tile_vision.side
        for image in request.images:
            if image.grid != (side, side):
                raise InvalidRequest(
                    f"an image has {image.grid[0]} x {image.grid[1]} patches; this model reads tiles of "
                    f"{side} x {side}",
                    param="messages",
                )
    # Image rows without an image would be read as an ordinary token, and the other way round (CVE-2026-44222).
    rows = np.array(request.prompt) == config.image_token_id
    inside = sum(int(rows[start:end].sum()) for start, end in request.image_spans)
    if not inside == int(rows.sum()) == request.image_tokens:
        raise InvalidRequest(
            f"the prompt has {int(rows.sum()):,} image rows, {inside:,} of them where its images are; the images have "
            f"{request.image_tokens:,}",
            param="messages",
        )


def check_length(request: Request, config: ModelConfig, cache: KVCache) -> None:
    """Raise ContextTooLong, with the numbers, for a request that could never run to its end.

    `max_tokens` is not named: its field has another name in some requests, and is not in others at all.
    """
    num_prompt, max_tokens = len(request.prompt), request.sampling.max_tokens
    limit = context_length(config, cache)
    if num_prompt + max_tokens <= limit:
        return
    model_limit = config.text.max_position_embeddings
    whose = "this model takes" if limit == model_limit else f"the model takes {model_limit:,}, its memory for contexts"
    if num_prompt >= limit:
        raise ContextTooLong(
            f"the prompt has {num_prompt:,} tokens; {whose} {limit:,}, one of them for the answer; shorten the prompt",
            param="messages",
        )
    raise ContextTooLong(
        f"the prompt has {num_prompt:,} tokens and up to {max_tokens:,} are asked for, together "
        f"{num_prompt + max_tokens:,}; {whose} {limit:,}; shorten the prompt or ask for fewer",
        param="max_tokens",
    )


def queue_is_full(waiting: Counter[str], tenant: str, limit: int) -> bool:
    """Whether one more request of `tenant` is refused when so many of each tenant wait.

    The `limit` is for all of them together. Those who fill it can't keep the others out: a tenant that has less than
    its share may go beyond, up to twice the limit.
    """
    if waiting.total() < limit:
        return False
    share = max(1, limit // len({*waiting, tenant}))
    return waiting.total() >= 2 * limit or waiting[tenant] >= share


class Pace:
    """How fast requests end, to tell a refused client when to come back."""

    def __init__(self) -> None:
        self._interval_s = 1.0  # a guess until two requests have ended
        self._last_end_s: float | None = None

    def request_ended(self, now_s: float) -> None:
        if self._last_end_s is not None:
            self._interval_s += SMOOTHING * (now_s - self._last_end_s - self._interval_s)
        self._last_end_s = now_s

    def idle(self) -> None:
        """The time until the next end says nothing about the pace."""
        self._last_end_s = None

    def retry_after_ms(self, num_waiting: int) -> int:
        """About when half of those that wait will have been served."""
        return round(min(max(self._interval_s * num_waiting / 2 * 1000, MIN_RETRY_MS), MAX_RETRY_MS))
