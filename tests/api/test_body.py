"""What a body costs while it is in the house. Its limits are in test_bad_input.py, on a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from starlette.requests import Request

from musespark.api.body import BodyReader


class Piece(bytes):
    """Knows how many of its kind there are."""

    alive = 0

    def __init__(self, _content: bytes) -> None:
        Piece.alive += 1

    def __del__(self) -> None:
        Piece.alive -= 1


def test_a_body_is_in_memory_once() -> None:
    def pieces() -> Iterator[dict[str, object]]:
        for number in range(8):
            yield {"type": "http.request", "body": Piece(b"%d" % number), "more_body": number < 7}

    async def read() -> None:
        messages = pieces()

        async def receive() -> dict[str, object]:
            return next(messages)

        request = Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)
        async with BodyReader(limit=100, timeout_s=10.0).read(request) as body:
            assert body == b"01234567"
            assert Piece.alive <= 1  # the last one may still be at hand

    asyncio.run(read())
