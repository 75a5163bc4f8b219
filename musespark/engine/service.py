"""The engine behind asyncio: it runs in its own thread, and each request is an async stream of events.

Whatever asyncio wants from the engine is a command in a mailbox that the thread empties between two steps; whatever a
step brought goes back in one `call_soon_threadsafe` per event loop. So nothing in the engine needs a lock. Every
admitted request gets a last event, also when the service closes or its thread dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from musespark.engine.engine import Engine
from musespark.engine.request import (
    AllowanceEvent,
    FailedEvent,
    FinishEvent,
    Request,
    StepEvent,
    Timing,
    TokenEvent,
    Usage,
    UsageEvent,
)
from musespark.engine.stats import EngineStats
from musespark.errors import EngineFailed, MuseSparkError, ShuttingDown

log = logging.getLogger(__name__)

SHUTTING_DOWN = "the server is shutting down; send the request again elsewhere or later"


class _Stream:
    """What the engine's thread and one client share. All methods run in the client's event loop."""

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.loop = loop
        self.events: deque[StepEvent] = deque()
        self.admitted = False
        self.refusal: MuseSparkError | None = None
        self.usage: Usage | None = None  # known after the last event
        self.timing: Timing | None = None
        self._news = asyncio.Event()

    def admit(self) -> None:
        self.admitted = True
        self._news.set()

    def refuse(self, error: MuseSparkError) -> None:
        self.refusal = error
        self._news.set()

    def put(self, event: StepEvent) -> None:
        self.events.append(event)
        if isinstance(event, UsageEvent | FailedEvent):
            self.usage = event.usage
        if isinstance(event, UsageEvent):
            self.timing = event.timing
        self._news.set()

    @property
    def ended(self) -> bool:
        return self.usage is not None or self.refusal is not None

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()


class Generation:
    """The events of one request: `async for event in generation`. For one consumer.

    TokenEvents of each choice, then its FinishEvent; after all of them a UsageEvent, which is the last. In between
    AllowanceEvents, of a request with an allowance: whoever reads them grants more, or the request pauses. A failure
    raises EngineFailed or ShuttingDown instead. `aclose()`, or dropping the object, cancels the request and frees its
    pages.
    """

    def __init__(self, stream: _Stream, cancel: Callable[[], None]) -> None:
        self._stream = stream
        self._cancel = cancel
        self._closed = False

    @property
    def usage(self) -> Usage | None:
        """What the request used, exactly: known after the last event, after `aclose()`, and after a failure."""
        return self._stream.usage

    @property
    def timing(self) -> Timing | None:
        """Where its time went: known after the last event and after `aclose()`, but not after a failure."""
        return self._stream.timing

    async def admitted(self) -> None:
        """Wait until the request is in the queue. Raises InvalidRequest, ContextTooLong, Overloaded, ShuttingDown, …"""
        stream = self._stream
        await stream.wait_for(lambda: stream.admitted or stream.ended)
        if stream.refusal is not None:
            raise stream.refusal

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> TokenEvent | FinishEvent | UsageEvent | AllowanceEvent:
        stream = self._stream
        await self.admitted()
        if self._closed:
            raise StopAsyncIteration
        await stream.wait_for(lambda: bool(stream.events) or stream.ended)
        if not stream.events:
            raise StopAsyncIteration
        event = stream.events.popleft()
        if isinstance(event, FailedEvent):
            raise event.error
        return event

    async def aclose(self) -> None:
        """Cancel what is not finished, and wait for the `usage`. The engine is told before the first await."""
        self._closed = True
        if not self._stream.ended:
            self._cancel()
            await self._stream.wait_for(lambda: self._stream.ended)

    def __del__(self) -> None:
        if not self._stream.ended:
            self._cancel()


class EngineService:
    """Owns the engine and its thread. `generate` belongs to event loops; the properties may be read from anywhere."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._mailbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[str, _Stream] = {}  # the thread's
        self._stats = engine.stats()
        self._drain_until_s: float | None = None
        self._stopped: MuseSparkError | None = None  # why nothing is accepted any more, once the thread has ended
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether a request may be sent: for /readyz."""
        return self._stopped is None and self._drain_until_s is None and self._engine.ready

    @property
    def failed(self) -> bool:
        """Whether it takes no requests because it failed, and not because it is being closed."""
        return isinstance(self._stopped, EngineFailed) or (self._drain_until_s is None and not self._engine.ready)

    @property
    def stats(self) -> EngineStats:
        """The state after the last step: for /metrics."""
        return self._stats

    @property
    def context_length(self) -> int:
        """The most tokens, prompt and completion together, that a request may have."""
        return self._engine.context_length

    def generate(self, request: Request) -> Generation:
        """Send a request. It is admitted or refused soon; see `Generation.admitted`."""
        stream = _Stream(request, asyncio.get_running_loop())
        self._post(functools.partial(self._submit, stream))
        return Generation(stream, functools.partial(self._post, functools.partial(self._cancel, stream)))

    async def close(self, drain_timeout_s: float = 30.0) -> None:
        """Accept nothing more, let the admitted requests end, fail those that take longer, free the model."""
        self._post(functools.partial(self._drain, drain_timeout_s))
        await asyncio.to_thread(self._thread.join)

    def _post(self, command: Callable[[], None]) -> None:
        """Have the thread run `command` between two steps. Never blocks, takes no lock: safe in a finalizer."""
        self._mailbox.put(command)
        if self._stopped is not None:
            self._run_commands()  # the thread has emptied its mailbox for the last time

    # In the engine's thread

    def _run(self) -> None:
        reason: MuseSparkError = ShuttingDown(SHUTTING_DOWN)
        try:
            self._serve()
        except Exception:
            log.exception("the engine's thread died")
            reason = EngineFailed("the engine stopped after an internal error; restart the server")
        finally:
            self._stop(reason)

    def _serve(self) -> None:
        while True:
            self._run_commands(self._idle_time_s())
            if self._drain_until_s is not None and self._nothing_to_drain(self._drain_until_s):
                return
            if self._engine.can_step:
                self._deliver(self._engine.step())
                if not self._engine.has_work:
                    self._engine.check_integrity()
            else:
                self._stats = self._engine.stats()

    def _nothing_to_drain(self, until_s: float) -> bool:
        return not self._engine.has_work or time.monotonic() >= until_s

    def _idle_time_s(self) -> float | None:
        """How long to wait for a command, which a grant is too; None: until one comes."""
        if self._engine.can_step:
            return 0.0
        if self._drain_until_s is None:
            return None
        return max(0.0, self._drain_until_s - time.monotonic()) if self._engine.has_work else 0.0

    def _run_commands(self, wait_s: float | None = 0.0) -> None:
        if wait_s != 0.0:
            with contextlib.suppress(queue.Empty):
                self._mailbox.get(timeout=wait_s)()
        while True:
            try:
                command = self._mailbox.get_nowait()
            except queue.Empty:
                return
            command()

    def _submit(self, stream: _Stream) -> None:
        try:
            if self._stopped is not None:
                raise type(self._stopped)(self._stopped.message)
            if self._drain_until_s is not None:
                raise ShuttingDown(SHUTTING_DOWN)
            self._engine.submit(stream.request)
        except MuseSparkError as error:
            self._tell(stream.loop, functools.partial(stream.refuse, error))
        except Exception as error:
            log.exception("request %r could not be queued", stream.request.id)
            failure = EngineFailed(f"the request could not be queued ({type(error).__name__})")
            self._tell(stream.loop, functools.partial(stream.refuse, failure))
        else:
            self._streams[stream.request.id] = stream
            if stream.request.allowance is not None:
                stream.request.allowance.listen(functools.partial(self._post, _wake_up))
            self._tell(stream.loop, stream.admit)

    def _cancel(self, stream: _Stream) -> None:
        if self._streams.get(stream.request.id) is stream:  # it may have ended, or never have begun
            self._deliver(self._engine.cancel(stream.request.id))

    def _drain(self, timeout_s: float) -> None:
        self._drain_until_s = time.monotonic() + timeout_s

    def _stop(self, reason: MuseSparkError) -> None:
        """The thread's last act: an answer for everyone, also for commands that arrive later (`_post`)."""
        for stream in list(self._streams.values()):
            error = type(reason)(reason.message)
            try:
                events = self._engine.fail(stream.request.id, error)
            except Exception:  # the engine's own books are broken
                log.exception("request %r could not be ended in order", stream.request.id)
                events = [FailedEvent(stream.request.id, error, Usage(0, 0, 0, 0, 0))]
            self._deliver(events)
        self._engine.ready = False
        self._stats = self._engine.stats()
        self._stopped = reason
        self._run_commands()
        self._engine.close()

    def _deliver(self, events: list[StepEvent]) -> None:
        """Hand out what a step brought, in one hop per event loop; whoever reads it finds it in `stats` already."""
        self._stats = self._engine.stats()
        hops: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, StepEvent]]] = {}
        for event in events:
            stream = self._streams[event.request_id]
            hops.setdefault(stream.loop, []).append((stream, event))
            if isinstance(event, UsageEvent | FailedEvent):
                self._forget(stream)
        for loop, news in hops.items():
            if not self._tell(loop, functools.partial(_put_all, news)):
                for stream, _ in news:
                    self._abandon(stream)

    def _abandon(self, stream: _Stream) -> None:
        """Its event loop is closed, so nobody will ever cancel it."""
        if stream.request.id in self._streams:
            self._forget(stream)
            self._engine.cancel(stream.request.id)
            self._stats = self._engine.stats()

    def _forget(self, stream: _Stream) -> None:
        del self._streams[stream.request.id]
        if stream.request.allowance is not None:
            stream.request.allowance.listen(None)

    @staticmethod
    def _tell(loop: asyncio.AbstractEventLoop, news: Callable[[], None]) -> bool:
        try:
            loop.call_soon_threadsafe(news)
        except RuntimeError:  # the loop is closed
            return False
        return True


def _wake_up() -> None:
    """The command that changes nothing: the thread looks again at what it may do."""


def _put_all(news: list[tuple[_Stream, StepEvent]]) -> None:
    for stream, event in news:
        stream.put(event)
