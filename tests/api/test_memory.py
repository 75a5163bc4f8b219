"""Large requests: few are parsed at once, small ones pass them, and nothing of them stays."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from musespark.api import sse
from musespark.api.body import Body
from musespark.api.deps import LARGE_AT_ONCE
from musespark.api.memory import LARGE_BYTES, forget_frames
from musespark.api.routes import chat
from musespark.errors import InvalidRequest
from tests.api.world import World

BLOCKS = """
from musespark.api.memory import return_large_blocks

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

return_large_blocks()
before, pins = resident_mb(), []
for _ in range(3):
    blocks = [bytes([1]) * (30 << 20) for _ in range(3)]
    pins.append(b"x" * 100_000)  # so that the heap's top is in use
    del blocks
print(resident_mb() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="other C libraries do as they like"
)
def test_free_blocks_go_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKS], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 10


def test_an_error_lets_go_of_what_its_functions_held() -> None:
    alive: list[weakref.ref[Any]] = []

    class Large:
        pass

    async def refuse() -> None:
        large = Large()
        alive.append(weakref.ref(large))
        try:
            raise ValueError("as a parser says it")
        except ValueError:
            raise InvalidRequest("as we say it") from None

    async def never() -> Any:
        await asyncio.Event().wait()

    async def ask() -> None:
        try:
            await sse.while_connected(never, refuse())
        except InvalidRequest as error:
            forget_frames(error)

    gc.disable()
    try:
        asyncio.run(ask())
        assert alive[0]() is None
    finally:
        gc.enable()


def test_few_large_bodies_are_parsed_at_once_and_small_ones_pass_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    understand, gate = chat._understand, threading.Event()
    running: list[int] = []

    def slowly(body: Body, *arguments: Any) -> Any:
        if len(body.content) > LARGE_BYTES:
            running.append(len(body.content))
            assert gate.wait(10)
        return understand(body, *arguments)

    monkeypatch.setattr(chat, "_understand", slowly)
    with ThreadPoolExecutor(LARGE_AT_ONCE + 1) as clients:
        asked = [clients.submit(world.ask, "x" * (LARGE_BYTES + 1)) for _ in range(LARGE_AT_ONCE + 1)]
        try:
            world.wait_until(lambda: len(running) == LARGE_AT_ONCE)
            time.sleep(0.2)
            assert world.ask("say: Hi").status_code == 200
            assert len(running) == LARGE_AT_ONCE
        finally:
            gate.set()
        for answer in asked:
            assert answer.result().json()["error"]["code"] == "context_length_exceeded"
