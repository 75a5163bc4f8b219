"""An answer that goes on without its client, for requests with an Idempotency-Key.

The answer belongs to the key and not to the connection: it is made to its end and kept, and the client that asked, or
the one that asks again after its connection broke, follows what there is of it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from musespark.accounts.idempotency import Begun, Kept, Running
from musespark.api import sse
from musespark.api.errors import error_response
from musespark.api.gate import as_musespark_error
from musespark.api.metering import Meter, Metering
from musespark.errors import IdempotencyConflict, InvalidRequest

log = logging.getLogger(__name__)

KEEPING_ATTEMPTS, KEEPING_PAUSE_S = 10, 2.0  # less than the lease of a key
FIRST_POLL_S, LAST_POLL_S = 0.05, 0.5  # for an answer that another request is getting


class Recording:
    """What was sent of one answer so far."""

    def __init__(self) -> None:
        self.status = 0
        self.media_type = ""
        self.body = bytearray()
        self.ended = False
        self.error: BaseException | None = None
        self._news = asyncio.Event()

    async def send(self, message: Message) -> None:
        """As an ASGI server has it. Comments that keep a connection open are no part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = dict(message["headers"])
            self.media_type = headers.get(b"content-type", b"application/octet-stream").decode()
        elif message.get("body", b"") != sse.PING:
            self.body += message.get("body", b"")
        self._tell()

    def end(self, error: BaseException | None = None) -> None:
        self.ended, self.error = True, error
        self._tell()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition() and not self.ended:
            await self._news.wait()
        if self.error is not None and not self.status:
            raise self.error  # nothing was sent yet, so it may still be an answer of its own

    async def chunks(self) -> AsyncGenerator[bytes]:
        sent = 0
        while sent < len(self.body) or not self.ended:
            await self.until(lambda sent=sent: len(self.body) > sent)  # type: ignore[misc]
            chunk = bytes(self.body[sent:])
            sent += len(chunk)
            if chunk:
                yield chunk

    async def follow(self, request: Request, ping_s: float) -> Response:
        """The answer for the client that is connected now. Raises what refused it."""
        await sse.while_connected(request.receive, self.until(lambda: self.status != 0))
        if self.media_type.startswith(sse.EventStream.media_type):
            return sse.EventStream(self.chunks(), ping_s, on_end=_nothing)
        await sse.while_connected(request.receive, self.until(lambda: self.ended))
        return Response(bytes(self.body), self.status, media_type=self.media_type)

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


async def begin(metering: Metering, request: Request, body: bytes) -> Begun | Response | None:
    """What an Idempotency-Key means for this request: None without one, the answer if it has been given already.

    Waits while another request gets it. Raises InvalidRequest, IdempotencyConflict and IdempotencyStorageFull.
    """
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1:
        raise InvalidRequest("there is more than one Idempotency-Key header", param="Idempotency-Key")
    project_id, request_id = request.state.identity.project_id, request.state.request_id
    pause_s = FIRST_POLL_S
    while True:
        found = await metering.in_thread(lambda: metering.answers.begin(project_id, keys[0], body, request_id))
        if isinstance(found, Begun):
            return found
        if isinstance(found, Kept):
            return replay(found)
        assert isinstance(found, Running)
        await sse.while_connected(request.receive, asyncio.sleep(pause_s))
        pause_s = min(2 * pause_s, LAST_POLL_S)


def replay(kept: Kept) -> Response:
    headers = {"idempotency-replayed": "true", "x-original-request-id": kept.request_id}
    if kept.body is None:
        raise IdempotencyConflict(
            f"this request was answered as {kept.request_id}, with an answer too long to be kept; it is not made again",
            param="Idempotency-Key",
        )
    return Response(kept.body, kept.status, headers, media_type=kept.media_type)


def record(
    metering: Metering, begun: Begun, meter: Meter, answer: Callable[[Request], Awaitable[Response]], request: Request
) -> Recording:
    """Start `answer` on a request whose client never leaves, and keep what comes of it if it was charged."""
    recording, store = Recording(), metering.answers

    async def run() -> None:
        error: BaseException | None = None
        failure: Response | None = None
        try:
            detached = Request(request.scope, _never)
            response = await answer(detached)
            await response(request.scope, _never, recording.send)
        except Exception as caught:
            error = caught
            if not recording.status:  # a failure is an answer too, where something was charged
                failure = error_response(as_musespark_error(caught, begun.request_id, request.state.log))
        if meter.spending.settlement is None:
            keep = functools.partial(store.release, begun)
        elif failure is not None:
            keep = functools.partial(store.finish, begun, failure.status_code, "application/json", bytes(failure.body))
        else:
            keep = functools.partial(store.finish, begun, recording.status, recording.media_type, bytes(recording.body))
        try:
            await metering.in_thread(keep)
        except Exception:
            recording.end(error)  # its client need not wait for the database
            await _insist(metering, keep)
        recording.end(error)

    async def run_alive() -> None:
        with metering.answering(begun):
            await run()

    metering.start(run_alive())
    return recording


async def _insist(metering: Metering, keep: Callable[[], None]) -> None:
    """Keep the answer when the database is back, if that is soon: a retry must not be made, and charged, anew."""
    for _attempt in range(KEEPING_ATTEMPTS):
        await asyncio.sleep(KEEPING_PAUSE_S)
        try:
            await metering.in_thread(keep)
        except Exception as error:
            log.warning("an answer could not be kept yet: %s", error)
        else:
            return


async def _never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError("not reached")


async def _nothing() -> None:
    pass
