"""What stands between a request and the engine: its limits and its money, from the first byte to the last.

`Metering` is the server's, `Meter` one request's. In order: `arrive` counts the request, `Meter.admit` its tokens and
holds the money for its prompt and its first tokens, `more` pays for the next ones while it runs, `settle` bills what
was used to the token, `end` gives back whatever is still held, whatever has happened. The database is only touched in
threads of its own, and work on money that has begun is finished also if the client or the server's task is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from musespark.accounts.accounts import Accounts
from musespark.accounts.idempotency import Begun, IdempotencyStore
from musespark.accounts.limits import NO_LIMITS, LimitStore, Standing, Unit
from musespark.accounts.limits_config import AllLimits, LimitReader, combine
from musespark.accounts.limits_memory import MemoryLimitStore
from musespark.accounts.verify import AWAY, Identity
from musespark.api.rate_headers import rate_headers
from musespark.api.spending import STEP_TOKENS, Spending, Treasury
from musespark.engine.allowance import Allowance
from musespark.engine.request import Usage
from musespark.errors import RateLimitExceeded
from musespark.providers.base import PromptSize

log = logging.getLogger(__name__)

T = TypeVar("T")

THREADS = 4  # for the database: SQLite writes one at a time anyway, PostgreSQL gains from a few
RENEW_S = 20.0  # a third of the shortest lease, that of limits_shared.py


class Metering:
    """One server's. `store` None: limits are counted in this process's memory."""

    def __init__(self, accounts: Accounts, store: LimitStore | None = None) -> None:
        self._store: LimitStore = MemoryLimitStore() if store is None else store
        self._store_blocks = store is not None
        self._limits = LimitReader(accounts.database)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="metering")
        self._treasury = Treasury(accounts, self.in_thread)
        self._running: dict[str, Meter] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewal: asyncio.Task[None] | None = None
        self._answering: dict[str, Begun] = {}  # Idempotency-Keys of requests that run here
        self._local = MemoryLimitStore()  # counts while the shared store can't be reached
        self.answers = IdempotencyStore(accounts.database)

    async def arrive(self, identity: Identity, request_id: str, headers: dict[str, str]) -> Meter:
        """Count a request. `headers` gets what its answer says about limits, be it a refusal or not.

        Raises RateLimitExceeded and ConcurrencyLimitExceeded.
        """
        limits = await self._limits_of(identity)
        meter = Meter(self, Spending(self._treasury, identity, request_id), request_id, limits, headers)
        if limits.caps:
            await self.in_store(lambda store: store.enter(limits.caps, request_id))
        self._running[request_id] = meter
        try:
            await meter.take({"requests": 1})
        except BaseException:
            await meter.end(None, "refused")
            raise
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew())
        return meter

    async def close(self) -> None:
        """Finish what has begun. The requests are over by then, and billed for what they have used."""
        if self._renewal is not None:
            self._renewal.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        self._threads.shutdown()

    async def leave(self, meter: Meter) -> None:
        if self._running.pop(meter.request_id, None) is not None and meter.limits.caps:
            await self.in_store(lambda store: store.leave(meter.request_id))

    async def in_store(self, call: Callable[[LimitStore], T]) -> T:
        """The answer of the store of limits, in a thread if it may block. While that is away, this process counts."""
        if not self._store_blocks:
            return call(self._store)
        try:
            return await self.in_thread(lambda: call(self._store))
        except AWAY as error:
            log.warning("limits can't be counted in the database: %s", error)
            return call(self._local)

    async def in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    @contextlib.contextmanager
    def answering(self, begun: Begun) -> Iterator[None]:
        """Speak for an Idempotency-Key while its answer is being made."""
        self._answering[begun.request_id] = begun
        try:
            yield
        finally:
            del self._answering[begun.request_id]

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """`work` goes on to its end even if the task that asked for it is cancelled, and `close` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("metering a request failed", exc_info=error)

    async def _limits_of(self, identity: Identity) -> AllLimits:
        organisation, project, key = ids = (identity.organisation_id, identity.project_id, identity.key_id)
        own = self._limits.remembered(ids)
        if own is None:
            own = await self.in_thread(lambda: self._limits.read(ids))
        plan = await self._treasury.plan_limits(organisation)
        return combine(
            (
                ("organisation", organisation, plan.but(own.get(organisation, NO_LIMITS))),
                ("project", project, own.get(project, NO_LIMITS)),
                ("key", key, own.get(key, NO_LIMITS)),
            )
        )

    async def _renew(self) -> None:
        """Speak for the running requests: what nobody speaks for is taken for lost, and ends by itself."""
        while True:
            await asyncio.sleep(RENEW_S)
            running = list(self._running.values())
            capped = [meter.request_id for meter in running if meter.limits.caps]
            holds = [meter.spending.hold for meter in running if meter.spending.hold is not None]
            works = (
                functools.partial(self._store.renew, capped),
                functools.partial(self._treasury.ledger.keep_alive, holds),
                functools.partial(self.answers.renew, list(self._answering.values())),
            )
            for work in works:
                try:
                    await self.in_thread(work)
                except Exception as error:  # the database may be away; the next round tries again
                    log.warning("running requests could not be renewed: %s", error)


class Meter:
    """One request's. `model` is the name that its price is under; it is set before `admit`."""

    def __init__(
        self, metering: Metering, spending: Spending, request_id: str, limits: AllLimits, headers: dict[str, str]
    ) -> None:
        self.request_id = request_id
        self.limits = limits
        self.spending = spending
        self.model = ""
        self._metering = metering
        self._headers = headers
        self._taken_tokens = 0  # of the rate limits
        self._more: asyncio.Task[None] | None = None
        self._ended = False
        self.handed_over = False  # to whoever answers, who ends it then

    @property
    def context_limit(self) -> int | None:
        return self.limits.context_tokens

    async def take(self, costs: Mapping[Unit, int]) -> None:
        """Use some of the rates. Raises RateLimitExceeded and RequestExceedsLimit, and then has used nothing."""
        rates = self.limits.rates
        if rates:
            try:
                self._note(await self._metering.in_store(lambda store: store.take(rates, costs)))
            except RateLimitExceeded:
                self._note(await self._metering.in_store(lambda store: store.take(rates, {})))
                raise

    def _note(self, standings: list[Standing]) -> None:
        self._headers |= rate_headers(standings)

    async def admit(self, prompt: PromptSize) -> Allowance:
        """Count the tokens of a request and hold its money, before anything of it is computed.

        What counts is the prompt, at full weight if it is cached too, and the first `STEP_TOKENS` of the answer; the
        others when they are paid for. Raises what `take` raises, and the errors of spending.
        """
        tokens = prompt.tokens + min(prompt.most_completion_tokens, STEP_TOKENS)
        await self.take({"tokens": tokens, "images": prompt.num_images})
        self._taken_tokens = tokens
        # A hold is opened to its end also if the client leaves meanwhile: `end` then gives it back.
        return await asyncio.shield(self._metering.start(self.spending.open(self.model, prompt)))

    def more(self) -> None:
        """Pay for more tokens, beside everything else: the request pauses only if that takes too long."""
        if self._more is None or self._more.done():
            self._more = self._metering.start(self._pay_for_more())

    async def _pay_for_more(self) -> None:
        granted = await self.spending.extend()
        self._taken_tokens += granted
        await self._correct(granted)

    async def settle(self, usage: Usage, outcome: str) -> None:
        """Bill what was used. Once; a second time has no effect."""
        await asyncio.shield(self._metering.start(self.spending.settle(usage, outcome)))

    async def end(self, usage: Usage | None, outcome: str) -> None:
        """The request is over: bill `usage` if that has not been done, and give back what was held and counted.

        `usage` None: nothing was computed. A failure before the first token costs nothing.
        """
        if not self._ended:
            self._ended = True
            await asyncio.shield(self._metering.start(self._end(usage, outcome)))

    async def _end(self, usage: Usage | None, outcome: str) -> None:
        try:
            if usage is None or (outcome == "failed" and usage.completion_tokens == 0):
                await self.spending.void(outcome)
            else:
                await self.spending.settle(usage, outcome)
            used = 0 if usage is None else usage.prompt_tokens + usage.completion_tokens
            await self._correct(used - self._taken_tokens)
        finally:
            await self._metering.leave(self)

    async def _correct(self, tokens: int) -> None:
        rates = [rate for rate in self.limits.rates if rate.unit == "tokens"]
        if rates and tokens:
            await self._metering.in_store(lambda store: store.correct(rates, {"tokens": tokens}))
