"""Our own engine as a provider: a conversation becomes a prompt, the engine's deltas become events.

Rendering decodes images and encodes text, which takes up to seconds; threads of its own do it, so that neither the
event loop nor the check of a key waits for somebody's large picture. Short texts have another thread, and don't either.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from musespark.chat.formats import ChatFormat
from musespark.chat.prompt import Prompt
from musespark.chat.tokenizer import Tokenizer
from musespark.engine.grammar import Grammar, Vocabulary
from musespark.engine.request import AllowanceEvent, FinishEvent, Request, SamplingParams, TokenEvent, Usage, UsageEvent
from musespark.engine.service import SHUTTING_DOWN, EngineService, Generation
from musespark.errors import CheckpointError, InvalidImage, InvalidRequest, ShuttingDown
from musespark.model.generation import GenerationDefaults
from musespark.providers.base import (
    Admit,
    ChatEvent,
    ChatRequest,
    ContentDelta,
    Finished,
    ModelInfo,
    ReasoningDelta,
    ToolCallDelta,
)
from musespark.providers.chat_output import Called, ChatOutput
from musespark.providers.constraints import compile_grammar, constraint_of
from musespark.providers.sizes import (
    check_context_limit,
    check_image_sizes,
    check_text_size,
    images_of,
    prompt_size,
    text_length,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

RENDER_THREADS = 2  # for prompts that take long; one more is for the others
SHORT_TEXT = 65_536  # characters of a prompt, without images, that is encoded in some 50 ms


class LocalProvider:
    """Answers from `service`, which the caller closes first, in the words of `chat`, which this closes.

    `reads_images` is whether the model has a tower for them, `max_image_pixels` how large they may be before scaling.
    """

    def __init__(
        self,
        service: EngineService,
        tokenizer: Tokenizer,
        chat: ChatFormat,
        defaults: GenerationDefaults,
        model: ModelInfo,
        *,
        reads_images: bool = True,
        max_image_pixels: int | None = None,
    ) -> None:
        self.model = replace(model, context_length=service.context_length, reads_images=reads_images)
        self._service = service
        self._tokenizer = tokenizer
        self._chat = chat
        self._defaults = defaults
        self._reads_images = reads_images
        self._max_image_pixels = max_image_pixels
        self._end_ids = chat.stop_token_ids | frozenset(defaults.eos_token_ids)
        self._vocabulary = Vocabulary(tokenizer, chat.stop_token_ids)
        self._longest_token = max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))
        self._long_threads = ThreadPoolExecutor(RENDER_THREADS, thread_name_prefix="render")
        self._short_thread = ThreadPoolExecutor(1, thread_name_prefix="render-short")
        self._closed = False

    @property
    def ready(self) -> bool:
        return self._service.ready

    @property
    def failed(self) -> bool:
        return self._service.failed

    async def chat(
        self,
        request: ChatRequest,
        *,
        admit: Admit | None = None,
        on_withdrawn: Callable[[Usage], None] | None = None,
    ) -> LocalStream:
        short = await self._in(self._short_thread, self._check, request)
        threads = self._short_thread if short else self._long_threads
        engine_request = await self._in(threads, self._engine_request, request)
        if admit is not None:
            engine_request = replace(engine_request, allowance=await admit(prompt_size(engine_request)))
        generation = self._service.generate(engine_request)
        try:
            await generation.admitted()
        except BaseException:
            await generation.aclose()
            if generation.usage is not None and on_withdrawn is not None:
                on_withdrawn(generation.usage)
            raise
        return LocalStream(generation, include_timings=request.include_timings)

    def metrics(self) -> Mapping[str, float]:
        stats = self._service.stats
        numbers: dict[str, float] = {
            "engine_ready": stats.ready,
            "engine_running_choices": stats.running,
            "engine_waiting_choices": stats.waiting,
            "engine_paused_choices": stats.paused,
            "engine_tokens_per_second": stats.tokens_per_s(time.monotonic()),
            "engine_prompt_tokens_per_step": stats.prompt_tokens_per_step,
            "engine_steps_total": stats.num_steps_total,
            "engine_step_seconds_total": stats.step_s_total,
            "engine_queue_seconds_total": stats.queue_s_total,
            "engine_prompt_seconds_total": stats.prompt_s_total,
            "engine_completion_seconds_total": stats.completion_s_total,
            "engine_prompt_tokens_total": stats.num_prompt_tokens_total,
            "engine_cached_tokens_total": stats.num_cached_tokens_total,
            "engine_generated_tokens_total": stats.num_generated_tokens_total,
            "engine_preemptions_total": stats.num_preemptions_total,
            "engine_drafted_tokens_total": stats.num_drafted_tokens_total,
            "engine_accepted_tokens_total": stats.num_accepted_tokens_total,
            "engine_overloaded_total": stats.num_overloaded_total,
            "engine_failed_requests_total": stats.num_failed_total,
            "engine_images_encoded_total": stats.num_images_encoded_total,
            "engine_image_features_bytes": stats.image_features_bytes,
        }
        for group, pages in (("full", stats.full_pages), ("sliding", stats.sliding_pages)):
            numbers |= {f"kv_{group}_pages_{state}": getattr(pages, state) for state in ("free", "used", "cached")}
        return numbers

    def close(self) -> None:
        """Returns at once. What is being rendered, or waits for it, is rendered, and then refused by the service."""
        self._closed = True
        for threads in (self._long_threads, self._short_thread):
            threads.shutdown(wait=False)
        self._vocabulary.close()
        self._chat.close()

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[ChatRequest], T], request: ChatRequest) -> T:
        if self._closed:
            raise ShuttingDown(SHUTTING_DOWN)
        return await asyncio.get_running_loop().run_in_executor(threads, work, request)

    def _check(self, request: ChatRequest) -> bool:
        """What is wrong with a request as far as that is cheap to say, and whether its prompt is rendered soon.

        Raises InvalidRequest and its kinds.
        """
        self._sampling(request, max_tokens=1)
        self._check_stop_tokens(request)
        self._make_output(request)(0)
        constraint = constraint_of(request)
        images = [place for place, _ in images_of(request)]
        if images and not self._reads_images:
            raise InvalidImage("this model reads text only; leave out the image", param=images[0])
        num_characters = text_length(request)
        check_text_size(num_characters, self._longest_token, self._service.context_length)
        return num_characters <= SHORT_TEXT and not images and constraint is None

    def _engine_request(self, request: ChatRequest) -> Request:
        """Raises InvalidRequest and its kinds. All images are looked at before one is decoded."""
        check_image_sizes(request, self._chat, self._service.context_length, self._max_image_pixels)
        tools = [offered.tool for offered in request.tools]
        try:
            prompt = self._chat.render(request.messages, tools=tools, reasoning_effort=request.reasoning_effort)
        except InvalidImage as error:
            if error.index is not None:
                error.param = [place for place, _ in images_of(request)][error.index]
            error.param = error.param or "messages"
            raise
        except InvalidRequest as error:
            error.param = error.param or "messages"
            raise
        except CheckpointError as error:
            # It has written others, and would take as long again: the client should not come back with the same.
            log.warning("a conversation could not be written: %s", error)
            message = "the model's own template was stopped at a limit while it wrote this conversation; shorten it"
            raise InvalidRequest(message, param="messages") from None
        max_tokens = request.max_tokens or self._room_left(prompt, request.context_limit)
        check_context_limit(request, len(prompt.token_ids), max_tokens)
        return Request(
            id=request.id,
            prompt=tuple(prompt.token_ids),
            images=prompt.images,
            image_spans=prompt.image_spans,
            sampling=self._sampling(request, max_tokens=max_tokens),
            salt=request.cache_salt,
            n=request.n,
            make_output=self._make_output(request),
            grammar=self._grammar(request, max_tokens),
            tenant=request.tenant,
            allowance=request.allowance,
        )

    def _grammar(self, request: ChatRequest, max_tokens: int) -> Grammar | None:
        constraint = constraint_of(request)
        if constraint is None:
            return None
        return compile_grammar(constraint, request, self._chat, self._vocabulary, max_tokens)

    def _check_stop_tokens(self, request: ChatRequest) -> None:
        """Those of the client; a checkpoint may name some of its own that its tokenizer lacks."""
        largest = max(request.stop_token_ids, default=0)
        if largest >= self._tokenizer.vocab_size:
            raise InvalidRequest(
                f"stop_token_ids has the token {largest:,}; this model's ids end at {self._tokenizer.vocab_size - 1:,}",
                param="stop_token_ids",
            )

    def _room_left(self, prompt: Prompt, context_limit: int | None) -> int:
        """The default of max_tokens; 1 for a prompt that leaves no room, which is refused with the numbers."""
        length = self._service.context_length
        return max(min(length, context_limit or length) - len(prompt.token_ids), 1)

    def _sampling(self, request: ChatRequest, *, max_tokens: int) -> SamplingParams:
        given = {
            name: value
            for name in ("top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "seed")
            if (value := getattr(request, name)) is not None
        }
        defaults = self._defaults
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=defaults.temperature if request.temperature is None else request.temperature,
            top_p=defaults.top_p if request.top_p is None else request.top_p,
            logit_bias=request.logit_bias,
            logprobs=request.logprobs,
            # With ignore_eos the model's own end is ordinary text; the client's stop tokens still stop.
            stop_token_ids=request.stop_token_ids | (frozenset() if request.ignore_eos else self._end_ids),
            **given,
        )

    def _make_output(self, request: ChatRequest) -> Callable[[int], ChatOutput]:
        """Holds little else of the request: it lives as long as the answer, and the images as sent are large."""
        tools = [offered.tool for offered in request.tools]
        stop, logprobs = request.stop, request.logprobs is not None

        def make(index: int) -> ChatOutput:
            return ChatOutput(
                index,
                parser=self._chat.parser(tools=tools),
                tokenizer=self._tokenizer,
                end_ids=self._end_ids,
                stop=stop,
                logprobs=logprobs,
            )

        return make


class LocalStream:
    """A `ChatStream` over a `Generation`."""

    def __init__(self, generation: Generation, *, include_timings: bool = False) -> None:
        self._generation = generation
        self._include_timings = include_timings
        self._events: deque[ChatEvent] = deque()
        self._called: set[int] = set()  # choices that ended with calls

    @property
    def usage(self) -> Usage | None:
        return self._generation.usage

    def __aiter__(self) -> LocalStream:
        return self

    async def __anext__(self) -> ChatEvent:
        while not self._events:
            event = await anext(self._generation)
            if isinstance(event, TokenEvent):
                for delta in event.deltas:
                    if isinstance(delta, Called):
                        self._called.add(delta.index)
                    else:
                        assert isinstance(delta, ContentDelta | ReasoningDelta | ToolCallDelta)
                        self._events.append(delta)
            elif isinstance(event, UsageEvent):
                if self._include_timings:
                    self._events.append(event.timing)
                self._events.append(event.usage)
            elif isinstance(event, AllowanceEvent):
                self._events.append(event)
            elif isinstance(event, FinishEvent) and event.reason != "cancelled":
                reason = "tool_calls" if event.index in self._called else event.reason
                self._events.append(Finished(event.index, reason))
        return self._events.popleft()

    async def aclose(self) -> None:
        self._events.clear()
        await self._generation.aclose()
