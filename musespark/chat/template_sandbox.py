"""Runs a checkpoint's chat template in a process of its own, with limits on time, memory and output.

Killing a process is the one limit that holds against everything a template can do: Jinja's sandbox bounds neither loops
nor `"x" * 10**9`, and Python code can't be interrupted inside a C function. The process starts once and serves one
rendering after the other, in about a millisecond each.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

from musespark.errors import CheckpointError, InvalidRequest

# Templates look up the call of every tool result among all calls: 4 s for 680 of each, beside a training run.
TIME_LIMIT_S = 20.0
LEAST_START_LIMIT_S = 5.0  # to start Python and compile the template: 60 ms where nothing else runs
SECONDS_PER_CHARACTER = 1e-6  # of the conversation, on top: 10 s more for one of 10 million
MAX_TEMPLATE_CHARACTERS = 1_000_000
OUTPUT_PER_INPUT = 4  # characters; templates add frames and schemas, they don't repeat the conversation
OUTPUT_BASE = 1_000_000

_WORKER = Path(__file__).with_name("template_worker.py")


class TemplateSandbox:
    """One template. Threads may share it; their renderings wait for each other. `close` ends its process."""

    def __init__(self, template: str, source: str, *, time_limit_s: float = TIME_LIMIT_S) -> None:
        """`source` names it in errors. Raises CheckpointError for one that is no template."""
        if len(template) > MAX_TEMPLATE_CHARACTERS:
            raise CheckpointError(
                f"{source} has {len(template):,} characters; the limit for a template is {MAX_TEMPLATE_CHARACTERS:,}"
            )
        self._template = template
        self._source = source
        self._time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        with self._lock:
            self._start()

    def render(self, variables: dict[str, Any], now: datetime) -> str:
        """The text for these variables, which must be JSON; `now` is the template's clock.

        Raises InvalidRequest if the template refuses the conversation or fails on it, CheckpointError at a limit.
        """
        line = json.dumps(variables)
        limit = OUTPUT_BASE + OUTPUT_PER_INPUT * len(line)
        request = f'{{"variables": {line}, "now": {json.dumps(now.isoformat())}, "max_characters": {limit}}}'
        with self._lock:
            if self._process is None:
                self._start()
            answer = self._ask(request, self._time_limit_s + SECONDS_PER_CHARACTER * len(line))
        if "text" in answer:
            return answer["text"]
        if "limit" in answer:
            raise CheckpointError(f"the template {self._source} was stopped: {answer['limit']}")
        if "refused" in answer:
            raise InvalidRequest(f"the model's template refuses this: {answer['refused']}", param="messages")
        raise InvalidRequest(
            f"the model's template can't write this conversation: {answer['failed']}", param="messages"
        )

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env={},
        )
        answer = self._ask(json.dumps(self._template), max(self._time_limit_s, LEAST_START_LIMIT_S))
        if "ready" not in answer:
            self._stop()
            raise CheckpointError(f"{self._source} is not a chat template: {answer.get('failed', answer.get('limit'))}")

    def _ask(self, line: str, time_limit_s: float) -> dict[str, str]:
        """One line there and back. A process that does not answer in time is ended; the next rendering starts one."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(time_limit_s, end)
        timer.start()
        answer = ""
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(line + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
        finally:
            timer.cancel()
        if answer.endswith("\n"):
            return dict(json.loads(answer))
        self._stop()
        return {"limit": f"it runs longer than {time_limit_s:.3g} s" if late.is_set() else "its process broke down"}

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        process.wait()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self._stop()
