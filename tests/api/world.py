"""A real server on a free loopback port, in a thread, around a model that does what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from musespark.accounts.accounts import Accounts
from musespark.api import logs
from musespark.api.app import create_app
from musespark.api.server import _Server, _uvicorn_config, bind
from musespark.api.settings import Settings
from musespark.engine.service import EngineService
from musespark.providers.local import LocalProvider
from tests.providers.talking import TalkingRunner, talking_engine, talking_provider

MODEL = "talking"
LOG = io.StringIO()  # one for all servers, since logging is set up once per process


@dataclass
class World:
    """One server and everything behind it."""

    url: str
    port: int
    key: str
    accounts: Accounts
    provider: LocalProvider
    service: EngineService
    runner: TalkingRunner
    settings: Settings
    client: httpx.Client

    def post(self, body: Any = None, *, content: bytes | None = None, **headers: str) -> httpx.Response:
        """POST /v1/chat/completions with the key; `content` sends raw bytes."""
        headers = {"content-type": "application/json"} | {name.replace("_", "-"): v for name, v in headers.items()}
        if content is not None:
            return self.client.post("/v1/chat/completions", content=content, headers=headers)
        return self.client.post("/v1/chat/completions", json=body, headers={**headers})

    def ask(self, text: str, **fields: Any) -> httpx.Response:
        return self.post(asking(text, **fields))

    def pages_in_use(self) -> int:
        stats = self.service.stats
        return stats.full_pages.used + stats.sliding_pages.used

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not true after {timeout_s} s; {self.service.stats}"
            time.sleep(0.005)

    def log_line(self, containing: str) -> str:
        """The one line of the log with this text; it is written when the answer has been sent already."""
        self.wait_until(lambda: containing in LOG.getvalue())
        [line] = [line for line in LOG.getvalue().splitlines() if containing in line]
        return line

    def wait_until_idle(self) -> None:
        self.wait_until(lambda: self.service.stats.running == self.service.stats.waiting == self.pages_in_use() == 0)


def exchange(port: int, *pieces: bytes) -> bytes:
    """The answer to these very bytes: its head and, if it announces a body, the body."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):  # the server may answer and close before everything is sent
            for piece in pieces:
                connection.sendall(piece)
        return receive(connection)


def receive(connection: socket.socket) -> bytes:
    """One answer; what there was of it, if the server closes."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while not _complete(answer) and (received := connection.recv(65536)):
            answer += received
    return answer


def _complete(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return bool(found) and (length is None or len(body) >= int(length[1]))


def asking(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


@contextmanager
def running_world(
    state_dir: Path, *, delay_s: float = 0.0, engine: dict[str, int] | None = None, **settings: Any
) -> Iterator[World]:
    """`engine` are options of the Engine, `settings` fields of Settings."""
    logs.configure(LOG)
    runner = TalkingRunner(delay_s=delay_s)
    service = EngineService(talking_engine(runner, **(engine or {})))
    provider = talking_provider(service)
    configured = Settings(state_dir=state_dir, port=0, **settings)
    with Accounts.open(state_dir, configured.database_url) as accounts, bind(configured.host, 0) as listener:
        new_key = accounts.create_first_key() or accounts.create_key("another")
        accounts.ledger.start()
        server = _Server(_uvicorn_config(create_app(provider, accounts, configured), configured))
        thread = threading.Thread(target=_serve, args=(server, listener), daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        headers = {"authorization": f"Bearer {new_key.secret}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            try:
                yield World(url, port, new_key.secret, accounts, provider, service, runner, configured, client)
            finally:
                runner.unblocked.set()
                server.should_exit = True
                asyncio.run(service.close(0.0))
                provider.close()
                client.close()
                thread.join(timeout=30)
                assert not thread.is_alive(), "the server did not stop"


def _serve(server: uvicorn.Server, listener: Any) -> None:
    asyncio.run(server.serve(sockets=[listener]))
