"""One admitted request on its way to its client: its events, its money while they come, and its end in any case."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from starlette.requests import Request

from musespark.api.deps import services_of
from musespark.api.metering import Meter
from musespark.engine.request import AllowanceEvent, Usage
from musespark.providers.base import ChatEvent, ChatStream, Finished


class Turn:
    def __init__(self, chat: ChatStream, meter: Meter, request: Request) -> None:
        self._chat = chat
        self._meter = meter
        self._request = request
        self._outcome = "aborted"  # unless something else is known: the client has left

    async def events(self) -> AsyncIterator[ChatEvent]:
        """What the client is told. Before its usage comes out, it is billed, so that it can say what it cost."""
        first, out_of_money = True, False
        try:
            async for event in self._chat:
                if isinstance(event, AllowanceEvent):
                    self._meter.more()
                    continue
                if first:
                    first = False
                    seconds = time.perf_counter() - self._request.state.started_s
                    services_of(self._request).metrics.first_token(seconds)
                if isinstance(event, Finished):
                    out_of_money = out_of_money or event.reason == "budget"
                if isinstance(event, Usage):
                    self._outcome = "budget" if out_of_money else "completed"
                    await self._meter.settle(event, self._outcome)
                yield event
        except Exception:
            self._outcome = "failed"
            raise

    async def end(self) -> None:
        """Whatever happened: free what the request holds, bill what it used, and note it."""
        await self._chat.aclose()
        await self._meter.end(self._chat.usage, self._outcome)
        if self._chat.usage is not None:
            note_usage(self._chat.usage, self._request)


def note_usage(usage: Usage, request: Request) -> None:
    services_of(request).metrics.usage(usage)
    request.state.log |= {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
    }
