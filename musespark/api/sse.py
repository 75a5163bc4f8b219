"""Server-sent events, and what every long answer needs: to notice at once that the client has left.

An answer always ends: with its last event, with an error event, or because nobody is there to read it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"  # a comment: clients skip it, proxies see that the connection lives


def event(data: Any) -> bytes:
    """One event. JSON has no bare newlines, so one `data:` line is always enough."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client leaves first; then ClientDisconnect is raised.

    The request's body must have been read: `receive` then has nothing to say but that the client left.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await _stop(watcher)
        await _stop(task)


class EventStream(Response):
    """Sends what `events` yields, with a comment after every `ping_s` seconds of silence.

    `on_end` is awaited at the end in any case, also if nothing was sent. Raises ClientDisconnect if the client left.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], ping_s: float, *, on_end: Callable[[], Awaitable[None]]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._ping_s = ping_s
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await while_connected(receive, self._send_all(send))
        finally:
            await self._events.aclose()
            await self._on_end()

    async def _send_all(self, send: Send) -> None:
        self._last_sent_s = asyncio.get_running_loop().time()
        pinger = asyncio.create_task(self._ping(send))
        try:
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._last_sent_s = asyncio.get_running_loop().time()
        finally:
            await _stop(pinger)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ping(self, send: Send) -> None:
        while True:
            silence_s = asyncio.get_running_loop().time() - self._last_sent_s
            if silence_s < self._ping_s:
                await asyncio.sleep(self._ping_s - silence_s)
                continue
            await send({"type": "http.response.body", "body": PING, "more_body": True})
            self._last_sent_s = asyncio.get_running_loop().time()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stop(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has cleaned up; its outcome is of no interest any more."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # looking at it keeps asyncio from reporting it as lost
