"""The servers of the HTTP rows, each started on a free port of 127.0.0.1 and ended with the `with` block."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from peers import VLLM, environment, tool

MUSESPARK = [sys.executable, "-P", "-c", "from musespark.cli import main; main()"]  # what this environment imports
START_LIMIT_S = 240.0
# Llama 4's, for the servers that have none of their own for these models.
TEMPLATE = (
    "<|begin_of_text|>{% for m in messages %}<|header_start|>{{ m.role }}<|header_end|>\n\n{{ m.content }}<|eot|>"
    "{% endfor %}<|header_start|>assistant<|header_end|>\n\n"
)


class Server:
    """A process that answers 200 at `ready_path` when it is ready. start_s: seconds from the call to there."""

    def __init__(self, command: list[str], port: int, ready_path: str, env: dict[str, str], model: str) -> None:
        self.port, self.model, self.key = port, model, ""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        begun = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, env=environment(**env))
        try:
            self._wait(f"http://127.0.0.1:{port}{ready_path}", begun + START_LIMIT_S)
        except BaseException:
            self.close()
            raise
        self.start_s = time.perf_counter() - begun

    def _wait(self, url: str, until: float) -> None:
        while True:
            try:
                with urllib.request.urlopen(url, timeout=1) as answer:
                    if answer.status == 200:
                        return
            except (OSError, urllib.error.URLError):
                pass
            if self._process.poll() is not None or time.perf_counter() > until:
                self._log.seek(0)
                raise RuntimeError(
                    f"{self._process.args} is not ready: {self._log.read()[-2000:].decode('utf-8', 'replace')}"
                )
            time.sleep(0.005)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ours(checkpoint: Path | None, state: Path, *, threads: int, slots: int, kv_memory_mb: int) -> Server:
    """`musespark serve` as users run it, with a key of its own. None: the model in the box."""
    port = free_port()
    env = {"MUSESPARK_STATE_DIR": str(state), "MUSESPARK_MAX_RUNNING": str(slots)}
    made = subprocess.run(
        [*MUSESPARK, "keys", "create", secrets.token_hex(4)],
        env=environment(**env),
        check=True,
        capture_output=True,
        text=True,
    )
    command = [*MUSESPARK, "serve", *([] if checkpoint is None else [str(checkpoint)]), "--port", str(port)]
    command += ["--threads", str(threads), "--kv-memory-mb", str(kv_memory_mb)]
    name = "muse-spark-nano" if checkpoint is None else checkpoint.name
    server = Server(command, port, "/readyz", env, name)
    server.key = made.stdout.strip()
    return server


def llama_server(gguf: Path, *, threads: int, slots: int, context: int) -> Server:
    """context: tokens of each slot."""
    port = free_port()
    command = [tool("llama-server"), "--model", gguf, "--host", "127.0.0.1", "--port", port]
    command += ["--threads", threads, "--parallel", slots, "--ctx-size", slots * context]
    command += ["--chat-template", TEMPLATE, "--no-webui"]
    return Server([str(word) for word in command], port, "/health", {}, gguf.name)


def vllm(checkpoint: Path, *, threads: int, slots: int, context: int) -> Server:
    port = free_port()
    command = [VLLM / "bin" / "python", "-m", "vllm.entrypoints.openai.api_server", "--model", checkpoint]
    command += ["--host", "127.0.0.1", "--port", port, "--max-model-len", context, "--max-num-seqs", slots]
    command += ["--dtype", "bfloat16", "--chat-template", TEMPLATE]
    env = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "HF_HUB_OFFLINE": "1"}
    return Server([str(word) for word in command], port, "/health", env, str(checkpoint))
