"""Reads a request body with every bound in place: type, size, time, and the memory of all bodies together.

Nothing is decompressed. The caller is authenticated before the first byte is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from musespark.errors import InvalidRequest, Overloaded, RequestTooLarge

BODIES_AT_ONCE = 4  # longest bodies that may be in memory together
RETRY_AFTER_MS = 1000


class BodyReader:
    """Hands out bodies of at most `limit` bytes each, and of `BODIES_AT_ONCE` times that together."""

    def __init__(self, limit: int, timeout_s: float) -> None:
        self._limit = limit
        self._timeout_s = timeout_s
        self._free = BODIES_AT_ONCE * limit

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body; its memory is accounted for until the block ends.

        Raises InvalidRequest, RequestTooLarge, Overloaded, and ClientDisconnect if the client left half-way.
        """
        self._check_headers(request)
        held = 0
        chunks: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(self._timeout_s):
                    while True:
                        message = await request.receive()
                        if message["type"] == "http.disconnect":
                            raise ClientDisconnect
                        chunk = message.get("body", b"")
                        held += len(chunk)
                        self._free -= len(chunk)
                        if held > self._limit:
                            raise self._too_large()
                        if self._free < 0:
                            raise Overloaded("too many large requests at once", retry_after_ms=RETRY_AFTER_MS)
                        chunks.append(chunk)
                        if not message.get("more_body", False):
                            break
            except TimeoutError:
                raise InvalidRequest(f"the body was not complete after {self._timeout_s:g} s") from None
            yield _joined(chunks)
        finally:
            self._free += held

    def _check_headers(self, request: Request) -> None:
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise InvalidRequest(f"content-encoding {encoding[:40]!r} is not supported; send the JSON as it is")
        media_type, *parameters = request.headers.get("content-type", "").lower().split(";")
        if media_type.strip() != "application/json":
            raise InvalidRequest(f"content-type is {media_type.strip()[:80]!r}; it must be application/json")
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            charset = value.strip().strip('"')
            if name.strip() == "charset" and charset not in ("utf-8", "utf8"):
                raise InvalidRequest(f"the content-type's charset is {charset[:40]!r}; JSON is sent in utf-8")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._limit:
            raise self._too_large()

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(
            f"the body is larger than {self._limit:,} bytes; the operator of this server can raise "
            "MUSESPARK_MAX_BODY_BYTES"
        )


def _joined(chunks: list[bytes]) -> bytes:
    """All of them as one; the list is empty then, since it would outlive what the caller does with the body."""
    whole = b"".join(chunks)
    chunks.clear()
    return whole


class Body:
    """One request's body: its bytes until somebody takes them, and its place in the reader's memory until `close`."""

    def __init__(self, reader: BodyReader) -> None:
        self.content = b""
        self._reader = reader
        self._place = AsyncExitStack()

    async def read(self, request: Request) -> None:
        """Raises what `BodyReader.read` does."""
        self.content = await self._place.enter_async_context(self._reader.read(request))

    def take(self) -> bytes:
        """The bytes, which nobody else holds then."""
        content, self.content = self.content, b""
        return content

    async def close(self) -> None:
        self.content = b""
        await self._place.aclose()
