"""What a connection may cost, seen from its other end: heads, chunks, readers who don't read, and too many of them."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from musespark.api import protocol
from tests.api.test_operations import samples
from tests.api.world import LOG, World, asking, exchange, receive, running_world

OPENING = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"


def head_of(num_bytes: int, key: str) -> bytes:
    """A whole request of exactly this length, with a key."""
    start = OPENING + f"Authorization: Bearer {key}\r\nX: ".encode()
    return start + b"a" * (num_bytes - len(start) - 4) + b"\r\n\r\n"


def error_code(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"])


@pytest.mark.parametrize("num_pieces", [1, 2])
def test_the_longest_head_is_exact_however_it_arrives(world: World, num_pieces: int) -> None:
    for num_bytes, status in ((65_536, b"200"), (65_537, b"400"), (70_000, b"400"), (200_000, b"400")):
        head = head_of(num_bytes, world.key)
        with socket.create_connection(("127.0.0.1", world.port), timeout=10) as connection:
            for start in range(0, num_bytes, -(-num_bytes // num_pieces)):
                connection.sendall(head[start : start + -(-num_bytes // num_pieces)])
                time.sleep(0.02)
            answer = receive(connection)
        assert answer.startswith(b"HTTP/1.1 " + status), (num_bytes, answer[:100])
        if status == b"400":
            assert error_code(answer) == "invalid_request"
            assert b"65,536" in answer


def test_a_long_head_behind_another_request_is_refused_too(world: World) -> None:
    answers = b""
    with socket.create_connection(("127.0.0.1", world.port), timeout=10) as connection:
        connection.sendall(head_of(300, world.key) + head_of(70_000, world.key))
        while received := connection.recv(65536):
            answers += received
    assert answers.startswith(b"HTTP/1.1 200")
    assert answers.count(b"HTTP/1.1 400") == 1


def chunked(world: World, num_chunks: int) -> bytes:
    """An ordinary request in this many chunks, most of them of one byte."""
    body = json.dumps(asking("say: hello")).encode().ljust(num_chunks)
    pieces = [*(body[i : i + 1] for i in range(num_chunks - 1)), body[num_chunks - 1 :]]
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {world.key}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    return head.encode() + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def test_a_body_may_come_in_so_many_chunks_and_no_more(world: World) -> None:
    assert exchange(world.port, chunked(world, protocol.MAX_CHUNKS)).startswith(b"HTTP/1.1 200")
    answer = exchange(world.port, chunked(world, protocol.MAX_CHUNKS + 1))
    assert answer.startswith(b"HTTP/1.1 400")
    assert error_code(answer) == "invalid_request"
    assert b"16,384 chunks" in answer


def test_chunks_are_counted_for_each_request_by_itself(world: World) -> None:
    with socket.create_connection(("127.0.0.1", world.port), timeout=10) as connection:
        for _ in range(2):
            connection.sendall(chunked(world, protocol.MAX_CHUNKS // 2 + 1))
            assert receive(connection).startswith(b"HTTP/1.1 200")


def test_a_million_small_chunks_do_not_keep_the_server_busy(world: World) -> None:
    began_s = time.monotonic()
    answer = exchange(world.port, chunked(world, 1_000_000))
    assert answer == b"" or error_code(answer) == "invalid_request"
    assert world.ask("say: hello").status_code == 200
    assert time.monotonic() - began_s < 5  # reading them all takes some twenty


@pytest.mark.parametrize("framing", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_a_body_that_goes_on_after_its_answer_is_cut_off(
    world: World, framing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's body is not waited for; else a few of them would hold all connections that there may be."""
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.3)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", world.port), timeout=10) as connection:
        connection.sendall(head.encode())
        assert receive(connection).startswith(b"HTTP/1.1 401")
        began_s = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began_s < 5:
                connection.sendall(b"1\r\na\r\n")
                time.sleep(0.02)
        assert time.monotonic() - began_s < 2


# Clients that don't read


@pytest.fixture(scope="module")
def impatient_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server that waits half a second for a reader, with a place for one request at a time."""
    state_dir: Path = tmp_path_factory.mktemp("impatient") / "state"
    with running_world(state_dir, write_timeout_s=0.5, engine={"max_running": 8}) as world:
        yield world


def stalled(world: World, **fields: object) -> socket.socket:
    """A client that asks for a long answer, takes in as little as the system lets it, and reads none of it."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", world.port))
    fields = {"n": 8, "logprobs": True, "top_logprobs": 20} | fields  # much text for each token
    body = json.dumps(asking("count", **fields)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {world.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_reads_nothing_loses_its_connection_and_its_place(impatient_world: World, stream: bool) -> None:
    began = len(LOG.getvalue())
    with stalled(impatient_world, stream=stream, max_tokens=1500 if stream else 300):
        impatient_world.wait_until(lambda: impatient_world.service.stats.running == 8)
        impatient_world.wait_until(lambda: "has read nothing of its answer for 0.5 s" in LOG.getvalue()[began:])
        impatient_world.wait_until_idle()  # while the client is still there
    if stream:
        impatient_world.wait_until(lambda: '"status":499' in LOG.getvalue()[began:])
        [line] = [line for line in LOG.getvalue()[began:].splitlines() if '"status":499' in line]
        assert 8 < json.loads(line)["completion_tokens"] < 8 * 1500


def test_a_slow_reader_keeps_its_connection(impatient_world: World) -> None:
    """It reads a little in each half second, and in the end it has everything."""
    received = b""
    with stalled(impatient_world, stream=True, n=1, max_tokens=200) as connection:
        while not received.endswith(b"0\r\n\r\n"):
            time.sleep(0.01)
            part = connection.recv(8192)
            assert part, received[-300:]
            received += part
    assert b"data: [DONE]" in received


# Too many connections


@pytest.fixture(scope="module")
def narrow_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server for three connections at a time."""
    with running_world(tmp_path_factory.mktemp("narrow") / "state", max_connections=3) as world:
        yield world


def request(world: World, path: str) -> bytes:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {world.key}\r\n\r\n"
    return exchange(world.port, head.encode())


def test_beyond_the_last_connection_there_is_an_error_and_healthz(narrow_world: World) -> None:
    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", narrow_world.port), timeout=10)

    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect())
        assert request(narrow_world, "/v1/models").startswith(b"HTTP/1.1 200")  # the third
        stack.enter_context(connect())
        for path in ("/v1/models", "/readyz", "/nothing"):
            answer = request(narrow_world, path)
            assert answer.startswith(b"HTTP/1.1 429"), path
            assert error_code(answer) == "server_overloaded"
            assert b"retry-after-ms" in answer
            assert b"connection: close" in answer
        health = request(narrow_world, "/healthz")
        assert health.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in health
        for _ in range(protocol.SPARE_CONNECTIONS):
            stack.enter_context(connect())
        assert request(narrow_world, "/healthz") == b""
    narrow_world.wait_until(lambda: request(narrow_world, "/v1/models").startswith(b"HTTP/1.1 200"))
    route = (("method", "GET"), ("route", "unmatched"), ("status", "429"))
    assert samples(narrow_world)["musespark_http_requests_total", route] >= 3


def test_an_idle_connection_beyond_the_limit_leaves_those_within_it_alone(narrow_world: World) -> None:
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(socket.create_connection(("127.0.0.1", narrow_world.port), timeout=10))
        time.sleep(0.05)
        assert request(narrow_world, "/healthz").startswith(b"HTTP/1.1 200")
