"""Clients that leave: at every chunk, in the queue, a thousand in a row. What they held is free again, at once."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator

import pytest

from musespark.engine.service import Generation
from tests.api.test_operations import samples
from tests.api.world import LOG, World, asking, running_world

ANSWER = "think: hmm; say: hello"
NUM_CHUNKS = 1 + len("hmm") + len("hello") + 1 + 1  # role, reasoning, content, finish, [DONE]


@pytest.fixture(scope="module")
def patient_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server whose model takes a moment for each token, so that a client can leave between any two."""
    with running_world(tmp_path_factory.mktemp("patient") / "state", delay_s=0.003) as world:
        yield world


def request_bytes(world: World, text: str, **fields: object) -> bytes:
    body = json.dumps(asking(text, **fields)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {world.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def connect(world: World) -> socket.socket:
    return socket.create_connection(("127.0.0.1", world.port), timeout=10)


def read_events(connection: socket.socket, count: int) -> None:
    """Read until `count` events of the stream have come."""
    seen = b""
    while seen.count(b"data: ") < count:
        received = connection.recv(4096)
        assert received, seen
        seen += received


@pytest.mark.parametrize("num_read", range(NUM_CHUNKS + 1))
def test_a_client_may_leave_after_any_chunk(patient_world: World, num_read: int) -> None:
    with connect(patient_world) as connection:
        connection.sendall(request_bytes(patient_world, ANSWER, stream=True))
        read_events(connection, num_read)
    patient_world.wait_until_idle()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_work_long_before_its_answer_would(patient_world: World, stream: bool) -> None:
    began = len(LOG.getvalue())
    with connect(patient_world) as connection:
        connection.sendall(request_bytes(patient_world, "count", stream=stream))
        patient_world.wait_until(lambda: patient_world.service.stats.running == 1)
    patient_world.wait_until_idle()  # the whole answer would take ten seconds and more
    patient_world.wait_until(lambda: '"status":499' in LOG.getvalue()[began:])
    line = next(line for line in LOG.getvalue()[began:].splitlines() if '"status":499' in line)
    assert 0 < json.loads(line)["completion_tokens"] < 2000  # what was used is known all the same


def test_what_a_client_used_is_known_also_if_it_leaves_in_the_moment_of_its_admission(
    patient_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine answers already, and the route has not heard of it yet."""
    admitted = Generation.admitted

    async def slowly(generation: Generation) -> None:
        await admitted(generation)
        await asyncio.sleep(10)

    monkeypatch.setattr(Generation, "admitted", slowly)
    began, before = len(LOG.getvalue()), samples(patient_world)
    with connect(patient_world) as connection:
        connection.sendall(request_bytes(patient_world, "count", stream=True))
        patient_world.wait_until(lambda: patient_world.service.stats.running == 1)
        time.sleep(0.05)
    patient_world.wait_until_idle()
    patient_world.wait_until(lambda: '"status":499' in LOG.getvalue()[began:])
    [line] = [line for line in LOG.getvalue()[began:].splitlines() if '"status":499' in line]
    used = json.loads(line)
    assert used["prompt_tokens"] > 0
    assert used["completion_tokens"] > 0
    for kind in ("prompt", "completion"):
        key = ("musespark_tokens_total", (("kind", kind),))
        assert samples(patient_world)[key] - before.get(key, 0) == used[f"{kind}_tokens"]


def test_a_client_that_leaves_takes_all_its_choices_with_it(patient_world: World) -> None:
    with connect(patient_world) as connection:
        connection.sendall(request_bytes(patient_world, "count", stream=True, n=8))
        patient_world.wait_until(lambda: patient_world.service.stats.running == 8)
    patient_world.wait_until_idle()


def test_a_client_that_leaves_the_queue_is_forgotten(tmp_path_factory: pytest.TempPathFactory) -> None:
    state_dir = tmp_path_factory.mktemp("queue") / "state"
    with running_world(state_dir, delay_s=0.005, engine={"max_running": 1, "max_waiting": 4}) as world:
        with connect(world) as first:
            first.sendall(request_bytes(world, "count", stream=True))
            world.wait_until(lambda: world.service.stats.running == 1)
            with connect(world) as second:
                second.sendall(request_bytes(world, "count", stream=True))
                world.wait_until(lambda: world.service.stats.waiting == 1)
            world.wait_until(lambda: world.service.stats.waiting == 0)
            assert world.service.stats.running == 1
        world.wait_until_idle()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9, 0.999])
def test_a_client_may_leave_in_the_middle_of_its_request(world: World, fraction: float) -> None:
    sent = request_bytes(world, "x" * 1000)
    with connect(world) as connection:
        connection.sendall(sent[: int(len(sent) * fraction)])
    assert world.ask("say: fine").status_code == 200


def test_a_client_that_stops_reading_does_not_stop_the_others(patient_world: World) -> None:
    with connect(patient_world) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.sendall(request_bytes(patient_world, "count", stream=True, n=4))
        read_events(connection, 1)
        began_s = time.monotonic()
        assert patient_world.ask("say: hello").status_code == 200
        assert time.monotonic() - began_s < 5
    patient_world.wait_until_idle()


def test_a_thousand_connect_and_drop_streams_leave_every_page_free(world: World) -> None:
    """CVE-2026-9540: resources not released under load."""
    world.wait_until_idle()
    sent = request_bytes(world, "count", stream=True)
    began = world.service.stats.num_finished_total["cancelled"]
    for i in range(1000):
        with connect(world) as connection:
            connection.sendall(sent)
            if i % 10 == 0:
                read_events(connection, 1 + i % 4)
    world.wait_until_idle()
    stats = world.service.stats
    assert stats.full_pages.free + stats.full_pages.cached == stats.full_pages.total
    assert stats.sliding_pages.free + stats.sliding_pages.cached == stats.sliding_pages.total
    assert stats.num_finished_total["cancelled"] - began >= 100  # those that had begun to read, at least
    assert world.ask("say: fine").json()["choices"][0]["message"]["content"] == "fine"
