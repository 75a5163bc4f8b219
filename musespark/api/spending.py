"""The money of requests: held before they start, in small steps while they run, billed exactly when they end.

The ledger decides; here is when it is asked, and how long to wait where money is held by other requests but not spent:
they may need less than they hold, so a refusal before they have ended would be wrong.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from musespark.accounts.accounts import Accounts
from musespark.accounts.holds import Hold
from musespark.accounts.ledger import REMEMBER_S, Ledger
from musespark.accounts.limits import Limits
from musespark.accounts.lines import Lines
from musespark.accounts.prices import DEFAULT_CURRENCY
from musespark.accounts.settlement import Settlement
from musespark.accounts.tables.prices import PRICE_UNITS
from musespark.accounts.verify import Identity
from musespark.engine.allowance import Allowance
from musespark.engine.request import Usage
from musespark.errors import SpendLimit
from musespark.providers.base import PromptSize

T = TypeVar("T")

STEP_TOKENS = 128  # paid for at a time: a few writes a second, whatever the load
PATIENCE_S = 60.0  # with money that is held by others
POLL_S = 0.25  # what other processes free is not announced here

Outcome = str  # "completed", "aborted", "budget", "failed": what the ledger keeps beside the tokens


class InThread(Protocol):
    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]: ...


class Treasury:
    """The ledger as the requests of one server use it."""

    def __init__(self, accounts: Accounts, in_thread: InThread) -> None:
        self.ledger: Ledger = accounts.ledger
        self.in_thread = in_thread
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.ledger.subscribe(self._freed)

    async def plan_limits(self, organisation_id: str) -> Limits:
        """What the organisation's plan allows; known for a second without asking."""
        plan = self.ledger.outage.plan(organisation_id, REMEMBER_S)
        if plan is None:
            plan = await self.in_thread(lambda: self.ledger.plan(organisation_id))
        return Limits.of_plan(plan.limits)

    async def news(self, organisation_id: str) -> None:
        """Wait until money of the organisation may have become free."""
        self._loop = asyncio.get_running_loop()
        future = self._loop.create_future()
        waiting = self._waiting[organisation_id]
        waiting.add(future)
        try:
            await asyncio.wait_for(future, POLL_S)
        except TimeoutError:
            pass
        finally:
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(organisation_id, None)

    def _freed(self, organisation_id: str) -> None:
        """Called by the ledger, in any of its threads."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._tell, organisation_id)

    def _tell(self, organisation_id: str) -> None:
        for future in self._waiting.get(organisation_id, set()):
            if not future.done():
                future.set_result(None)


class Spending:
    """The money of one request. What touches its hold goes one after the other."""

    def __init__(self, treasury: Treasury, identity: Identity, request_id: str) -> None:
        self.hold: Hold | None = None
        self.settlement: Settlement | None = None
        self.stopped_by: tuple[str, str] | None = None  # code and message of the limit that ended it
        self._treasury = treasury
        self._identity = identity
        self._request_id = request_id
        self._allowance: Allowance | None = None
        self._most_tokens = 0
        self._lock = asyncio.Lock()
        self._closed = False

    async def open(self, model: str, prompt: PromptSize) -> Allowance:
        """Hold money for the prompt and the first tokens. Raises the errors of spending."""
        ledger, identity = self._treasury.ledger, self._identity

        def hold() -> Hold:
            return ledger.open_hold(
                self._request_id,
                identity.organisation_id,
                identity.project_id,
                identity.key_id,
                ledger.price(model, organisation_id=identity.organisation_id),
                text_in=prompt.text_tokens,
                image_in=prompt.image_tokens,
                output=min(STEP_TOKENS, prompt.most_completion_tokens),
                max_output=prompt.most_completion_tokens,
            )

        deadline = time.monotonic() + PATIENCE_S
        while self.hold is None:
            try:
                async with self._lock:
                    if self._closed:
                        raise asyncio.CancelledError  # the client has left, and nobody waits for this
                    self.hold = await self._treasury.in_thread(hold)
            except SpendLimit as error:
                if not error.held_by_others or time.monotonic() >= deadline:
                    raise
                await self._treasury.news(identity.organisation_id)
        self._most_tokens = prompt.most_completion_tokens
        self._allowance = Allowance(self.hold.granted_output)
        return self._allowance  # also where the hold is final: `extend` is asked for the reason when half is used

    async def extend(self) -> int:
        """Pay for more tokens, and wait for money if others hold it. Returns how many tokens were added."""
        hold, allowance = self.hold, self._allowance
        assert hold is not None
        assert allowance is not None
        before, deadline = allowance.granted, time.monotonic() + PATIENCE_S
        while not self._closed and not allowance.final:
            patient = time.monotonic() < deadline
            async with self._lock:
                if self._closed:
                    break
                used = Lines() if allowance.usage is None else lines_of(allowance.usage())
                ask = functools.partial(
                    self._treasury.ledger.extend,
                    hold,
                    used,
                    max(0, min(STEP_TOKENS, self._most_tokens - allowance.granted)),
                    give_up=not patient,
                )
                grant = await self._treasury.in_thread(ask)
                if grant.final and grant.code is not None:
                    self.stopped_by = grant.code, grant.message or grant.code
                if grant.final or grant.granted_output > allowance.granted:
                    allowance.grant(max(grant.granted_output, allowance.granted), final=grant.final)
            if not grant.waiting:
                break
            await self._treasury.news(hold.organisation_id)
        return allowance.granted - before

    async def settle(self, usage: Usage, outcome: Outcome) -> None:
        """Bill what was used, to the token. A second time has no effect."""
        async with self._lock:
            closed, self._closed = self._closed, True
            if closed or self.hold is None:
                return
            hold, lines = self.hold, lines_of(usage)
            self.settlement = await self._treasury.in_thread(
                lambda: self._treasury.ledger.settle(hold, lines, outcome=outcome)
            )

    async def void(self, outcome: Outcome) -> None:
        """Bill nothing: the request failed before its first token."""
        async with self._lock:
            closed, self._closed = self._closed, True
            if closed or self.hold is None:
                return
            hold = self.hold
            await self._treasury.in_thread(lambda: self._treasury.ledger.void(hold, outcome=outcome))

    def billing(self) -> dict[str, Any] | None:
        """What the usage object says of money, once it is settled."""
        if self.settlement is None:
            return None
        return billing_object(self.settlement)


def lines_of(usage: Usage) -> Lines:
    """The tokens in the kinds that are priced. A usage asked for in mid-step may count reasoning a token too early."""
    return Lines(
        text_in=usage.computed_text_tokens,
        image_in=usage.computed_image_tokens,
        cached_in=usage.cached_tokens,
        output=max(0, usage.visible_tokens),
        reasoning=min(usage.reasoning_tokens, usage.completion_tokens),
    )


def billing_object(settlement: Settlement) -> dict[str, Any]:
    """Each kind of tokens with its price: their amounts, and the fee, add up to the whole."""
    price = settlement.price
    nano = f"nano_{(price.currency or DEFAULT_CURRENCY).lower()}"
    lines = [
        {"unit": unit, "tokens": tokens, f"{nano}_per_token": each, f"amount_{nano}": tokens * each}
        for unit, tokens, each in zip(PRICE_UNITS, settlement.lines.counts, price.units, strict=True)
        if tokens
    ]
    if price.request_fee:
        lines.append({"unit": "request", f"amount_{nano}": price.request_fee})
    return {
        "hold_id": settlement.hold_id,
        "price_version": price.version,
        "currency": price.currency or DEFAULT_CURRENCY,
        "lines": lines,
        f"amount_{nano}": settlement.amount_nano,
        f"written_off_{nano}": settlement.written_off_nano,
        "pending": settlement.pending,
    }
