"""The engine: requests in, events out, one `step()` at a time. Single-threaded; service.py gives it a thread.

A step computes one batch: `schedule -> forward -> sample -> append -> finish`. What a request does wrong, or what
goes wrong with it alone (its image, its output), ends that request. If the runner itself raises, every running
request ends with EngineFailed, all cached pages are forgotten, and a probe of one token decides whether the engine
goes on with those that wait or reports that it isn't ready. Every submitted request gets exactly one last event.
What a request may generate can be bounded by an allowance that grows while it runs (allowance.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from musespark.engine.admission import Pace, check_length, check_request, context_length, queue_is_full
from musespark.engine.answers import Answers
from musespark.engine.batch import build_batch, images_in, probe_batch
from musespark.engine.chunk_size import ChunkSize
from musespark.engine.features import ImageFeatures
from musespark.engine.kv_cache import KVCache
from musespark.engine.request import Request, SampledToken, StepEvent
from musespark.engine.runner import Float32, Runner
from musespark.engine.sampler import Sampler
from musespark.engine.scheduler import Chunk, Scheduler
from musespark.engine.sequence import RequestState, Sequence, new_sequence
from musespark.engine.speculation import Drafter, NgramDrafter, Speculation
from musespark.engine.stats import Counters, EngineStats
from musespark.errors import EngineFailed, InvalidRequest, MuseSparkError, Overloaded

log = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one runner, which the engine closes at the end.

    `max_batch_tokens` bounds a step, `max_running` the choices in the batch, `max_waiting` the requests that wait (a
    tenant with less than its share may go beyond, up to twice that). Prompts get so much of a step that running streams
    have their next token after `decode_latency_target_s` (chunk_size.py).
    `max_pixel_bytes` the images of all admitted requests together (one alone may have more), `image_cache_bytes` the
    encoded images that are kept. `suppressed_token_ids` can never be sampled (image rows, padding, reserved ids).
    `max_draft_tokens` of a stream that runs alone are guessed and checked at once (speculation.py); 0 is off.
    `clock` gives seconds.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_batch_tokens: int = 512,
        max_running: int = 16,
        max_waiting: int = 64,
        decode_latency_target_s: float = 0.2,
        max_pixel_bytes: int = 512 << 20,
        suppressed_token_ids: Iterable[int] = (),
        image_cache_bytes: int = 64 << 20,
        max_draft_tokens: int = 0,
        make_drafter: Callable[[], Drafter] = NgramDrafter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ready = True
        self._runner = runner
        self._config = runner.config
        self._cache = KVCache(runner.config.text, runner.num_full_pages, runner.num_sliding_pages)
        self._scheduler = Scheduler(self._cache, max_batch_tokens=max_batch_tokens, max_running=max_running)
        self._features = ImageFeatures(runner, image_cache_bytes, clock)
        suppressed = set(suppressed_token_ids)
        image_token_id = runner.config.image_token_id
        if runner.config.image_tower is not None and image_token_id < runner.config.text.vocab_size:
            suppressed.add(image_token_id)
        self._sampler = Sampler(suppressed)
        max_draft_tokens = min(max_draft_tokens, max_batch_tokens - 1)
        self._speculation = Speculation(max_draft_tokens, runner.config.text.vocab_size, suppressed, make_drafter)
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._max_pixel_bytes = max_pixel_bytes
        self._clock = clock
        self._chunk_size = ChunkSize(max_batch_tokens, decode_latency_target_s)
        self._counters = Counters()
        self._arrivals = 0
        self._pace = Pace()
        self._answers = Answers(self._scheduler, self._features, self._counters, self._pace, clock)

    # What callers use

    @property
    def has_work(self) -> bool:
        return bool(self._answers.states)

    @property
    def can_step(self) -> bool:
        """Whether a step does anything: not while all requests wait for more of their allowances."""
        return self._scheduler.can_advance or self._answers.review_is_due

    @property
    def context_length(self) -> int:
        """The most tokens, prompt and completion together, that a request may have."""
        return context_length(self._config, self._cache)

    def submit(self, request: Request) -> None:
        """Queue a request, or raise InvalidRequest, ContextTooLong, Overloaded or EngineFailed."""
        if not self.ready:
            raise EngineFailed("the engine stopped after an internal error; restart the server")
        if request.id in self._answers.states:
            raise InvalidRequest(f"a request with the id {request.id!r} is running already")
        check_length(request, self._config, self._cache)  # first: it bounds what the other costs
        check_request(request, self._config)
        self._check_queue(request)
        state = RequestState(request, submitted_s=self._clock())
        self._arrivals += 1
        vocab_size = self._config.text.vocab_size
        for index in range(request.n):
            state.unfinished.append(new_sequence(state, index, self._arrivals, self._cache, vocab_size))
        first, *state.held = state.unfinished
        self._scheduler.add(first)
        self._answers.add(state)

    def step(self) -> list[StepEvent]:
        """Compute one batch; what is new, in order for each choice. A runner that raises is an event, not an error."""
        started_s = self._answers.now_s = self._clock()
        try:
            self._answers.review_allowances()
            most = self._chunk_size.num_tokens
            chunks = self._scheduler.schedule(most // 2 or 1 if self._features.is_busy else most)
            features = self._encode(chunks)
            encoded_s = self._clock()
            chunks = self._speculation.with_drafts(chunks, self._cache)
            num_decoding = sum(chunk.end - chunk.start == 1 for chunk in chunks)
            num_prompt_tokens = sum(chunk.end - chunk.start for chunk in chunks) - num_decoding
            logits = self._forward(chunks, features)
            states = [chunk.sequence.sampling for chunk in chunks if chunk.samples]
            tokens = self._sampler.sample(logits[: len(states)], states)
            self._append(chunks, tokens)
            num_accepted = self._accept(chunks[0], logits[1:]) if chunks and chunks[0].draft else 0
            self._answers.finish(chunks)
            self._answers.review_allowances()
            now_s = self._clock()
            step_s = now_s - started_s
            self._counters.step_s += step_s
            self._chunk_size.measured(now_s - encoded_s, num_decoding, num_prompt_tokens)
            self._speculation.measured(chunks, num_accepted, step_s)
        except Exception as error:
            self._recover(error)
        return self._answers.take_events()

    def cancel(self, request_id: str) -> list[StepEvent]:
        """End a request in whatever state; its pages are free at once. An unknown or ended one gives no events."""
        state = self._answers.states.get(request_id)
        if state is not None:
            while state.unfinished:
                self._answers.end(state.unfinished[0], "cancelled")
        return self._answers.take_events()

    def fail(self, request_id: str, error: MuseSparkError) -> list[StepEvent]:
        """End a request with `error`."""
        if request_id in self._answers.states:
            self._answers.fail(self._answers.states[request_id], error)
        return self._answers.take_events()

    def check_integrity(self) -> None:
        """Raise EngineFailed unless every page and every sequence is accounted for."""
        scheduled = self._scheduler.waiting + self._scheduler.running
        self._cache.check_integrity(sequence.table for sequence in scheduled)
        states = self._answers.states.values()
        unfinished = [s for state in states for s in state.unfinished if s not in state.held]
        if len(scheduled) != len(unfinished) or set(scheduled) != set(unfinished):
            raise EngineFailed(f"{len(scheduled)} sequences are scheduled, {len(unfinished)} are unfinished")
        if any(sequence.table.full or sequence.table.sliding for sequence in self._scheduler.waiting):
            raise EngineFailed("a waiting sequence holds pages")

    def stats(self) -> EngineStats:
        return self._counters.snapshot(
            ready=self.ready,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + sum(len(state.held) for state in self._answers.states.values()),
            full_pages=self._cache.full.counts,
            sliding_pages=self._cache.sliding.counts,
            image_features_bytes=self._features.size_bytes,
            num_images_encoded_total=self._features.num_encoded,
            num_preemptions_total=self._scheduler.num_preemptions,
            paused=self._scheduler.num_paused,
            prompt_tokens_per_step=self._chunk_size.num_tokens,
            num_drafted_tokens_total=self._speculation.num_drafted,
            num_accepted_tokens_total=self._speculation.num_accepted,
        )

    def probe(self, token: int) -> Float32:
        """Logits (V,) after `token` alone. Only while nothing runs, so that there are pages for it."""
        table = self._cache.new_table(b"", lambda page: b"")
        self._cache.extend(table, 1)
        try:
            return self._runner.forward(probe_batch(token, table, self._config.text.hidden_size))[0]
        finally:
            self._cache.release(table)

    def close(self) -> None:
        self._runner.close()

    # The parts of submit and step

    def _check_queue(self, request: Request) -> None:
        """Raise Overloaded if as many requests wait as may, those apart that could start in the next step, or if there
        is no memory for the images of one more.
        """
        free = self._max_running - len(self._scheduler.running)
        admitted_bytes = sum(state.request.pixel_bytes for state in self._answers.states.values())
        if queue_is_full(self._scheduler.waiting_requests(), request.tenant, self._max_waiting + free):
            problem = f"{self._max_waiting} requests are waiting already, which is the limit"
        elif request.images and admitted_bytes and admitted_bytes + request.pixel_bytes > self._max_pixel_bytes:
            problem = f"the images of earlier requests fill the {self._max_pixel_bytes:,} bytes that there are for them"
        else:
            return
        self._counters.overloaded += 1
        raise Overloaded(f"{problem}; try again later", retry_after_ms=self._pace.retry_after_ms(self._max_waiting))

    def _encode(self, chunks: list[Chunk]) -> dict[tuple[str, int], Float32]:
        """The features of the images in `chunks`, by request and index, as far as this step has time for them.

        A chunk ends before the first image that isn't ready. The chunks of a request whose image can't be encoded go.
        """
        features: dict[tuple[str, int], Float32] = {}
        if not any(chunk.sequence.request.images for chunk in chunks):
            return features
        streams = any(chunk.end - chunk.start == 1 for chunk in chunks)
        self._features.begin_step(self._chunk_size.spare_s(beside_streams=streams))
        for at, chunk in enumerate(chunks):
            state = chunk.sequence.state
            if state.request.id not in self._answers.states:
                continue  # another choice of the same request failed just now
            try:
                for image, start, _ in images_in(chunk):
                    known = self._features.get(state.request, image)
                    if known is None:
                        chunks[at] = replace(chunk, end=start, samples=False)
                        break
                    features[state.request.id, image] = known
            except Exception as error:
                log.exception("an image of request %r can't be encoded", state.request.id)
                self._answers.fail(state, EngineFailed(f"an image could not be encoded ({type(error).__name__})"))
        alive = self._answers.states
        chunks[:] = [chunk for chunk in chunks if chunk.end > chunk.start and chunk.sequence.request.id in alive]
        return features

    def _forward(self, chunks: list[Chunk], features: dict[tuple[str, int], Float32]) -> Float32:
        """Logits (R, V) of the chunks that sample."""
        for chunk in chunks:
            if chunk.sequence.state.started_s is None:
                chunk.sequence.state.started_s = self._answers.now_s
        if not chunks:
            return np.empty((0, self._config.text.vocab_size), dtype=np.float32)
        hidden_size = self._config.text.hidden_size
        batch = build_batch(chunks, lambda request, image: features[request.id, image], hidden_size)
        for chunk in chunks:
            if chunk.samples and chunk.sequence.sampling.matcher is not None:
                chunk.sequence.sampling.matcher.begin()
        logits = self._runner.forward(batch)
        expected = (len(batch.logit_rows), self._config.text.vocab_size)
        if logits.shape != expected:
            raise EngineFailed(f"the runner returned logits {logits.shape}, expected {expected}")
        self._counters.steps += 1
        self._answers.now_s = self._clock()
        return logits

    def _append(self, chunks: list[Chunk], tokens: list[SampledToken | MuseSparkError | None]) -> None:
        """Record what was computed, and give each choice its new token."""
        sampled = iter(tokens)
        for chunk in chunks:
            sequence, samples = chunk.sequence, chunk.samples
            token = next(sampled) if samples else None
            if sequence.request.id not in self._answers.states:
                continue  # another choice of the same request failed just now
            if samples and self._fails(sequence, token):
                continue
            sequence.num_computed = chunk.end
            self._cache.commit(sequence.table, chunk.end)
            state, num_prompt = sequence.state, len(sequence.request.prompt)
            state.prompt_tokens = max(state.prompt_tokens, min(chunk.end, num_prompt))
            if chunk.end >= num_prompt:
                while state.held:
                    self._scheduler.add(state.held.pop(0))
            if isinstance(token, SampledToken):
                self._answers.push(sequence, token)

    def _accept(self, chunk: Chunk, logits: Float32) -> int:
        """Go on with the rows (len(draft), V) behind right guesses; returns how many were right.

        A row is of use if the token that was sampled before it is the one that it was computed for.
        """
        sequence = chunk.sequence
        for row, guess in enumerate(chunk.draft):
            if sequence not in sequence.state.unfinished or sequence.finish_reason is not None:
                return row
            if sequence.generated[-1] != guess:
                return row
            (token,) = self._sampler.sample(logits[row : row + 1], [sequence.sampling])
            if self._fails(sequence, token):
                return row
            assert isinstance(token, SampledToken)
            self._scheduler.charge_accepted(sequence)
            sequence.num_computed += 1
            self._cache.commit(sequence.table, sequence.num_computed)
            self._answers.push(sequence, token)
        return len(chunk.draft)

    def _fails(self, sequence: Sequence, token: SampledToken | MuseSparkError | None) -> bool:
        """Whether there is no token; then the request ends."""
        if isinstance(token, MuseSparkError):
            self._answers.fail(sequence.state, token)
        elif token is None:
            self._cache.forget()  # whatever made the logits so may be in a shared page
            self._answers.fail(sequence.state, EngineFailed("the model computed logits that are not numbers"))
        return not isinstance(token, SampledToken)

    def _recover(self, error: Exception) -> None:
        """After a failure of the runner: nothing that it computed is trusted, and what runs has lost its place."""
        log.error("a step failed; its requests end", exc_info=error)
        for state in {sequence.state for sequence in self._scheduler.running}:
            self._answers.fail(
                state, EngineFailed(f"the engine failed in this request ({type(error).__name__}); try again")
            )
        self._cache.forget()
        try:
            self.probe(0)  # any token does
        except Exception:
            log.exception("the runner still fails; the engine stops")
            self.ready = False
            for state in list(self._answers.states.values()):
                self._answers.fail(state, EngineFailed("the engine stopped after an internal error"))
