"""The server as a process: its first words, its signals, its sudden death."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from musespark.accounts.accounts import Accounts
from musespark.api import logs
from musespark.api.load import LoadedModel
from musespark.api.server import bind, serve
from musespark.api.settings import Settings
from musespark.errors import CheckpointError, SetupError, StateError
from tests.api.world import LOG, asking

ROOT = Path(__file__).parents[2]


class Process:
    """One server process; `stdout` and `stderr` go to files, so that neither can fill up and block it."""

    def __init__(self, state_dir: Path, **environment: str) -> None:
        state_dir.parent.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.out, self.err = state_dir.parent / "stdout.txt", state_dir.parent / "stderr.txt"
        variables = {"MUSESPARK_STATE_DIR": str(state_dir), "PORT": str(self.port), "PYTHONPATH": str(ROOT)}
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.api.talking_server"],
                cwd=ROOT,
                env=os.environ | variables | environment,
                stdout=out,
                stderr=err,
            )

    def wait_for(self, path: str, status: int, timeout_s: float = 30.0) -> httpx.Response:
        deadline = time.monotonic() + timeout_s
        while True:
            assert self.process.poll() is None, self.err.read_text()
            try:
                response = httpx.get(self.url + path, timeout=5)
                if response.status_code == status:
                    return response
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, f"{path} did not become {status}: {self.err.read_text()}"
            time.sleep(0.02)

    def wait_for_banner(self) -> str:
        deadline = time.monotonic() + 30
        while "curl" not in self.out.read_text():
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self.out.read_text()

    def end(self) -> tuple[int, str]:
        """The exit status and what was said on standard error."""
        status = self.process.wait(timeout=30)
        return status, self.err.read_text()


@contextmanager
def running(state_dir: Path, **environment: str) -> Iterator[Process]:
    server = Process(state_dir, **environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def key_in(banner: str) -> str:
    found = re.search(r"sk-muse-[0-9A-Za-z]{49}", banner)
    assert found, banner
    return found[0]


def ask(server: Process, key: str, text: str = "say: hello") -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/v1/chat/completions", json=asking(text), headers=headers, timeout=30)


def test_the_first_start_prints_a_key_once_and_a_command_that_works_when_pasted(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    with running(state_dir) as server:
        banner = server.wait_for_banner()
        key = key_in(banner)
        assert f"base URL  {server.url}/v1" in banner
        assert str(state_dir / "musespark.db") in banner
        assert "musespark keys create" not in banner
        [command] = [line for line in banner.splitlines() if line.startswith("curl ")]
        pasted = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True)
        assert json.loads(pasted.stdout)["choices"][0]["message"]["content"].startswith("I read 6 bytes")
        server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == 0
        assert key not in server.err.read_text()
    with running(state_dir) as server:
        banner = server.wait_for_banner()
        assert "sk-muse-" not in banner
        assert "musespark keys create" in banner
        assert "$MUSESPARK_API_KEY" in banner
        [command] = [line for line in banner.splitlines() if line.startswith("curl ")]
        environment = os.environ | {"MUSESPARK_API_KEY": key}
        pasted = subprocess.run(["bash", "-c", command], capture_output=True, timeout=30, check=True, env=environment)
        assert b"I read 6 bytes" in pasted.stdout
        server.process.send_signal(signal.SIGINT)
        assert server.end()[0] == 0


def test_while_the_model_is_loaded_the_server_is_alive_and_not_ready(tmp_path: Path) -> None:
    with running(tmp_path / "state", LOAD_S="1.5") as server:
        assert server.wait_for("/healthz", 200).json() == {"status": "ok"}
        loading = server.wait_for("/readyz", 503)
        assert loading.json()["error"]["code"] == "model_loading"
        assert int(loading.headers["retry-after-ms"]) > 0
        assert server.wait_for("/readyz", 200).json() == {"status": "ready", "database": "up"}
        assert ask(server, key_in(server.wait_for_banner())).status_code == 200


def test_a_signal_while_the_model_is_loaded_ends_the_server(tmp_path: Path) -> None:
    with running(tmp_path / "state", LOAD_S="60") as server:
        server.wait_for("/healthz", 200)
        server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == 0
        assert server.out.read_text() == ""


@pytest.fixture
def _own_log() -> Iterator[None]:
    """`serve` sends the log to standard error; the other tests want it back."""
    yield
    logs.configure(LOG)


@pytest.mark.usefixtures("_own_log")
def test_a_bad_checkpoint_ends_the_server_before_a_key_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(_settings: Settings) -> LoadedModel:
        raise CheckpointError("model.safetensors is truncated")

    with pytest.raises(CheckpointError, match="truncated"):
        serve(Settings(state_dir=tmp_path / "state", port=0), load)
    assert capsys.readouterr().out == ""
    with Accounts.open(tmp_path / "state") as accounts:
        assert accounts.list_keys() == []


@pytest.mark.usefixtures("_own_log")
def test_a_port_in_use_is_one_sentence_and_nothing_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SetupError) as caught:
            serve(Settings(state_dir=tmp_path / "state", port=port), never_load)
    assert caught.value.message == f"port {port} is in use; stop what listens there, or choose another with PORT=…"


@pytest.mark.usefixtures("_own_log")
def test_an_unusable_state_folder_is_one_sentence_and_nothing_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("not a folder")
    with pytest.raises(StateError, match=r"is a file; choose another folder with MUSESPARK_STATE_DIR"):
        serve(Settings(state_dir=tmp_path / "state", port=0), never_load)


def never_load(_settings: Settings) -> LoadedModel:
    raise AssertionError("this is too early to load a model")


@pytest.mark.parametrize(
    ("host", "message"),
    [("192.0.2.1", "can't listen on 192.0.2.1"), ("no.such.host.invalid", "is not an address that this machine knows")],
)
def test_an_address_of_another_machine_is_refused(host: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        bind(host, 0)


def test_of_two_servers_on_one_port_the_second_fails() -> None:
    with bind("127.0.0.1", 0) as first, pytest.raises(SetupError, match="is in use"):
        bind("127.0.0.1", first.getsockname()[1])


def read_in_thread(server: Process, key: str, seen: list[str]) -> threading.Thread:
    """Streams an answer into `seen`, line by line; an end without [DONE] or an error event adds "broken"."""

    def read() -> None:
        url, headers = f"{server.url}/v1/chat/completions", {"authorization": f"Bearer {key}"}
        body = asking("count", stream=True, max_tokens=60)
        try:
            with httpx.stream("POST", url, json=body, headers=headers, timeout=30) as response:
                seen.extend(line for line in response.iter_lines() if line)
        except httpx.TransportError:
            seen.append("broken")

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def wait_for_tokens(server: Process, key: str) -> None:
    """Until the engine is at work, seen from outside."""
    deadline = time.monotonic() + 10
    while True:
        metrics = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {key}"}).text
        if "musespark_engine_running_choices 1.0" in metrics:
            return
        assert time.monotonic() < deadline, metrics
        time.sleep(0.01)


def test_sigterm_lets_a_running_answer_end(tmp_path: Path) -> None:
    with running(tmp_path / "state", STEP_S="0.02", MUSESPARK_DRAIN_S="20") as server:
        key = key_in(server.wait_for_banner())
        seen: list[str] = []
        thread = read_in_thread(server, key, seen)
        wait_for_tokens(server, key)
        server.process.send_signal(signal.SIGTERM)
        thread.join(timeout=30)
        assert seen[-1] == "data: [DONE]"
        assert server.end()[0] == 0


def test_an_answer_that_outlasts_the_drain_ends_with_an_error_event(tmp_path: Path) -> None:
    with running(tmp_path / "state", STEP_S="0.1", MUSESPARK_DRAIN_S="0.3") as server:
        key = key_in(server.wait_for_banner())
        seen: list[str] = []
        thread = read_in_thread(server, key, seen)
        wait_for_tokens(server, key)
        server.process.send_signal(signal.SIGTERM)
        thread.join(timeout=30)
        assert json.loads(seen[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert server.end()[0] == 0


def test_a_second_signal_ends_the_drain_at_once(tmp_path: Path) -> None:
    with running(tmp_path / "state", STEP_S="0.2", MUSESPARK_DRAIN_S="60") as server:
        key = key_in(server.wait_for_banner())
        seen: list[str] = []
        thread = read_in_thread(server, key, seen)
        wait_for_tokens(server, key)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        began_s = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.end()[0] == 0
        assert time.monotonic() - began_s < 5
        thread.join(timeout=30)
        assert "shutting_down" in seen[-1]


def test_after_a_kill_in_mid_request_the_next_start_is_as_if_nothing_had_been(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    with running(state_dir, STEP_S="0.05") as server:
        key = key_in(server.wait_for_banner())
        seen: list[str] = []
        thread = read_in_thread(server, key, seen)
        wait_for_tokens(server, key)
        server.process.kill()
        thread.join(timeout=30)
        assert seen[-1] == "broken"
    with running(state_dir) as server:
        assert "sk-muse-" not in server.wait_for_banner()
        assert ask(server, key).json()["choices"][0]["message"]["content"] == "hello"
        with sqlite3.connect(state_dir / "musespark.db") as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        raw.close()


def test_a_key_revoked_by_another_process_ends_within_a_second(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    code = (
        "import pathlib; from musespark.accounts.accounts import Accounts\n"
        f"with Accounts.open(pathlib.Path({str(state_dir)!r})) as accounts:\n"
        "    [accounts.revoke_key(key.id) for key in accounts.list_keys()]"
    )
    with running(state_dir) as server:
        key = key_in(server.wait_for_banner())
        assert ask(server, key).status_code == 200
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
        deadline = time.monotonic() + 1.0
        while ask(server, key).status_code == 200:
            assert time.monotonic() < deadline
        assert ask(server, key).status_code == 401
