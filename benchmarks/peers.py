"""Where the other engines are, for every benchmark that measures against them: `make peers` puts them there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LLAMA_CPP = ROOT / ".venv-peers"
VLLM = ROOT / ".venv-peers-vllm"


def environment(**more: str) -> dict[str, str]:
    """This process's environment for another engine, without what we set in it for torch of our own: with it the
    threads of llama.cpp and of transformers would sleep at every barrier, and decode five times slower."""
    return {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | more


def tool(name: str) -> Path:
    """One of llama.cpp's commands. Ends the program if it is not there."""
    path = LLAMA_CPP / "bin" / name
    if not path.exists():
        sys.exit(f"{path} is not there; `make peers` compiles llama.cpp and its tools")
    return path
