"""One engine of a comparison in a process of its own, that answers JSON lines: ours_worker.py, llama_cpp_peer.py."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers import LLAMA_CPP, environment, tool

HERE = Path(__file__).parent
OURS = [sys.executable, HERE / "ours_worker.py"]


def llama_cpp() -> list[Path | str]:
    tool("python")
    return [LLAMA_CPP / "bin" / "python", HERE / "llama_cpp_peer.py"]


class Side:
    """Kept until closed; idle while nobody asks."""

    def __init__(self, command: list[Any], **load: Any) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        words = [str(word) for word in command]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment()
        )
        self.facts = self.ask(do="load", **load)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Raises RuntimeError with the end of what the process said, if it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({key: _plain(value) for key, value in request.items()}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self._process.args} ended: {self._log.read()[-2000:].decode(errors='replace')}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
