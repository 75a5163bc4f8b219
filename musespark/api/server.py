"""`serve`: from settings to a listening server, and from a signal to an orderly end.

The port is taken before the model is loaded: a second server fails at once, and while a large model is being loaded
`/healthz` says 200 and `/readyz` 503. SIGTERM or Ctrl-C starts the drain: nothing new is accepted, running answers get
`drain_s` seconds, then an error event. A second signal ends the drain at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import orjson
import uvicorn
from fastapi import FastAPI

from musespark.accounts.accounts import Accounts
from musespark.accounts.keys import NewKey
from musespark.api import logs
from musespark.api.app import create_app
from musespark.api.delivery import exporting
from musespark.api.deps import Services
from musespark.api.load import LoadedModel, load_model
from musespark.api.memory import return_large_blocks
from musespark.api.protocol import BoundedProtocol
from musespark.api.settings import Settings
from musespark.errors import SetupError

T = TypeVar("T")

KEEP_ALIVE_S = 30
BACKLOG = 512


def serve(settings: Settings, load: Callable[[Settings], LoadedModel] = load_model) -> None:
    """Run until SIGTERM or Ctrl-C. Raises a SetupError if the state folder, the port or the checkpoint is unusable."""
    logs.configure()
    return_large_blocks()
    with (
        Accounts.open(settings.state_dir, settings.database_url) as accounts,
        bind(settings.host, settings.port) as listener,
        contextlib.ExitStack() as stack,
    ):
        stack.enter_context(exporting(accounts, settings))
        accounts.ledger.start()  # what it settles for a server that died is exported, too
        app = create_app(None, accounts, settings)
        server = _Server(_uvicorn_config(app, settings))
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_run(server, app.state.services, accounts, listener, load))


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises SetupError with one sentence on what to do."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise SetupError(f"{host!r} is not an address that this machine knows; check MUSESPARK_HOST") from None
    listener = socket.socket(family, kind, protocol)  # without the protocol asyncio leaves Nagle's 40 ms on
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SetupError(f"port {port} is in use; stop what listens there, or choose another with PORT=…") from None
        raise SetupError(f"can't listen on {host} port {port}: {error.strerror}") from None
    return listener


def banner(
    settings: Settings, port: int, model: LoadedModel, names: Sequence[str], new_key: NewKey | None, database: str
) -> str:
    """What a person needs to begin: the base URL, the key (once), and a command to paste.

    `names` are those that the operator's own keys may ask for; none where all releases of the model are drafts.
    """
    base_url = f"http://{_reachable(settings.host)}:{port}/v1"
    if new_key is None:
        key, note = "$MUSESPARK_API_KEY", "yours from the first start; `musespark keys create` makes another"
    else:
        key, note = new_key.secret, f"shown only this once: {database} keeps a keyed hash of it"
    model_id = model.provider.model.id
    released = f", released as {', '.join(names) or 'nothing yet'}" if list(names) != [model_id] else ""
    body = orjson.dumps(
        {"model": names[0] if names else model_id, "messages": [{"role": "user", "content": "Hello!"}]}
    ).decode()
    headers = f"-H 'Content-Type: application/json' -H \"Authorization: Bearer {key}\""
    lines = [
        f"base URL  {base_url}",
        f"model     {model_id} (context: {model.service.context_length:,} tokens){released}",
        f"API key   {'' if new_key is None else key + ' '}({note})",
    ]
    if model.memory is not None:
        lines.append(model.memory.table(settings.memory))
    return "\n".join(
        [
            "",
            "Muse Spark is ready.",
            *lines,
            "",
            "Try it:",
            f"curl {base_url}/chat/completions {headers} -d '{body}'",
            "",
        ]
    )


async def _run(
    server: _Server,
    services: Services,
    accounts: Accounts,
    listener: socket.socket,
    load: Callable[[Settings], LoadedModel],
) -> None:
    settings = services.settings
    signals: asyncio.Queue[None] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, None)
    stopping = asyncio.create_task(signals.get())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = _in_daemon_thread(lambda: load(settings))
    tasks: set[asyncio.Future[Any]] = {loading, stopping, serving}
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    model = loading.result() if loading.done() and not loading.exception() else None
    if model is not None:
        services.provider = model.provider
        port = listener.getsockname()[1]
        names = accounts.releases.current().names_for_operators({model.provider.model.id}, time.time())
        new_key = accounts.create_first_key()  # not before there is a model: a key that nobody sees would be lost
        print(banner(settings, port, model, names, new_key, accounts.database_name), flush=True)
        await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    stopping.cancel()
    if model is not None:
        await _drain(model, settings.drain_s, signals)
    await serving
    await services.metering.close()
    if loading.done():
        loading.result()  # raises what was wrong with the checkpoint


async def _drain(model: LoadedModel, drain_s: float, signals: asyncio.Queue[None]) -> None:
    """Give running answers their time; a second signal takes it away."""
    draining = asyncio.create_task(model.close(drain_s))
    second = asyncio.create_task(signals.get())
    await asyncio.wait({draining, second}, return_when=asyncio.FIRST_COMPLETED)
    second.cancel()
    if not draining.done():
        await model.close(0.0)
    await draining


def _in_daemon_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """The result of `work`, in a thread that does not keep the process alive when loading is interrupted."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server was stopped meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return future


def _uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    protocol = functools.partial(BoundedProtocol, settings.max_connections, settings.write_timeout_s)
    return uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]  # it is called like a class
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.drain_s)
        + 5,  # the engine ends every answer by then; this is for readers
    )


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would end the process after the drain, before we have cleaned up."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _reachable(host: str) -> str:
    """An address to connect to, for one to listen on."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
