"""HTTP/1.1 as uvicorn speaks it (with h11), and a bound for everything that a connection may cost: the length and time
of a head, the chunks of a body, a reader who doesn't read, and how many connections there are.

What is not HTTP, or beyond these bounds, is refused in the form of all our errors, and the connection ends.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from musespark.api.errors import error_object
from musespark.errors import InvalidRequest

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 30.0
MAX_CHUNKS = 16_384  # of one body: 0.4 s of a core, and 32 MiB in pieces of 2 KiB
SPARE_CONNECTIONS = 16  # beyond the limit: they hear that it is reached, and /healthz answers


class BoundedProtocol(H11Protocol):
    """One connection.

    uvicorn alone would wait for ever for a head, for the rest of a body that nobody wants, and for a client that
    doesn't read its answer; and a few thousand such connections use up a process's file descriptors.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def __init__(self, max_connections: int, write_timeout_s: float, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._max_connections = max_connections
        self._write_timeout_s = write_timeout_s
        self.conn = _BoundedConnection(h11.SERVER, MAX_HEADER_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        excess = len(self.connections) - self._max_connections
        if excess > SPARE_CONNECTIONS:
            transport.close()
            return
        if excess > 0:
            self.app_state = self.app_state | {"crowded": True}  # the gate refuses what it asks
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_writing()
        if self.conn.their_state is not h11.IDLE:  # between requests it's uvicorn's keep-alive that waits
            self._watch_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching_head()
        self._stop_watching_writing()

    # A client that has to send something

    def _watch_head(self) -> None:
        """Wait for a head, or for the end of a body whose request is answered, no longer than `HEAD_TIMEOUT_S`."""
        theirs = self.conn.their_state
        unwanted = theirs is h11.SEND_BODY and self.cycle.response_complete
        if self.transport.is_closing() or not (theirs is h11.IDLE or unwanted):
            self._stop_watching_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_watching_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # A client that has to read something

    def _watch_writing(self) -> None:
        """From here on nothing is written until the client has read, or because the answer is whole."""
        self._stop_watching_writing()
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            self._write_timer = self.loop.call_later(self._write_timeout_s, self._check_writing, unsent)

    def _check_writing(self, unsent_before: int) -> None:
        self._write_timer = None
        if not self.flow.write_paused and not self.cycle.response_complete:
            return  # the next answer on this connection has begun, and its bytes are among the unsent
        if self.transport.get_write_buffer_size() < unsent_before:
            self._watch_writing()
            return
        log.warning("a client has read nothing of its answer for %g s; its connection ends", self._write_timeout_s)
        self.transport.abort()  # close() would wait for the client to read

    def _stop_watching_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # A client that doesn't speak HTTP

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True  # who still reads this request's body must not answer, too
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # an answer has begun; another can't be put into it
            return
        assert isinstance(self.conn, _BoundedConnection)
        body = orjson.dumps(error_object(InvalidRequest(self.conn.refusal)))
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()


class _BoundedConnection(h11.Connection):
    """h11 looks at a head's length only while it is incomplete, and never at the number of chunks.

    `refusal` says what was wrong when `next_event` has raised RemoteProtocolError.
    """

    refusal = f"this is not a valid HTTP/1.1 request, or its head is longer than {MAX_HEADER_BYTES:,} bytes"
    _num_chunks = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._num_chunks = 0
            if _head_bytes(event) > MAX_HEADER_BYTES:
                raise h11.RemoteProtocolError(self.refusal)
        elif isinstance(event, h11.Data) and event.chunk_start:
            self._num_chunks += 1
            if self._num_chunks > MAX_CHUNKS:
                self.refusal = f"the body comes in more than {MAX_CHUNKS:,} chunks; send larger ones"
                raise h11.RemoteProtocolError(self.refusal)
        return event


def _head_bytes(request: h11.Request) -> int:
    """The length of a head as it is usually written, `Name: value`, with its empty line."""
    first_line = len(request.method) + len(request.target) + len(" " + " HTTP/1.1" + "\r\n")
    fields = sum(len(name) + len(value) + len(": " + "\r\n") for name, value in request.headers)
    return first_line + fields + len("\r\n")
