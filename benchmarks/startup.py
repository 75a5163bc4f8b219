"""How long a later start takes, how much memory an idle server holds, and how much disk the serving environment takes.

    .venv/bin/python benchmarks/startup.py [--environment .venv] [--runs 5]

Starts the installed `musespark serve` on a free port with a state folder of its own, waits for `/readyz` to answer
200, reads the process's memory after two idle seconds, stops it, and repeats. The first run prepares the state folder
and is not counted. Prints a table and, as the last line, one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

LIMITS = {"ready_s": 3.0, "idle_mib": 350.0, "disk_mib": 300.0}
ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def memory_mib(pid: int) -> float:
    """Proportional set size of a process, in MiB: private pages plus its share of common ones."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/smaps_rollup has no Pss line")


def disk_mib(*folders: Path) -> float:
    """Bytes that the files take, in MiB; a hard link counts once."""
    seen: dict[tuple[int, int], int] = {}
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                status = os.lstat(Path(root, name))
                seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values()) / 2**20


def measure(environment: Path, state: str) -> tuple[float, float]:
    """Start, wait until ready, rest, measure, stop. Returns (seconds to ready, idle MiB)."""
    port = free_port()
    log = Path(state, "server.log")
    with log.open("wb") as sink:
        begin = time.perf_counter()
        server = subprocess.Popen(
            [environment / "bin/musespark", "serve", "--port", str(port)],
            env=os.environ | {"MUSESPARK_STATE_DIR": state},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
                        if answer.status == 200:
                            break
                except (OSError, urllib.error.URLError):
                    pass
                if server.poll() is not None or time.perf_counter() - begin > 60:
                    raise RuntimeError(f"the server did not become ready:\n{log.read_text()}")
                time.sleep(0.01)
            ready = time.perf_counter() - begin
            time.sleep(2)
            return ready, memory_mib(server.pid)
        finally:
            server.terminate()
            server.wait(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv", help="the environment `make serve` made")
    parser.add_argument("--runs", type=int, default=5, help="counted runs, after one that is not")
    arguments = parser.parse_args()
    if not (arguments.environment / "bin/musespark").exists():
        sys.exit(f"{arguments.environment} holds no musespark; run `make serve` once")
    with tempfile.TemporaryDirectory() as state:
        runs = [measure(arguments.environment, state) for _ in range(arguments.runs + 1)][1:]
    figures = {
        "ready_s": statistics.median(ready for ready, _ in runs),
        "idle_mib": statistics.median(memory for _, memory in runs),
        "disk_mib": disk_mib(arguments.environment, ROOT / "musespark"),
    }
    print(f"{'figure':<10} {'measured':>10} {'limit':>8} {'ratio':>6}")
    for name, value in figures.items():
        print(f"{name:<10} {value:>10.2f} {LIMITS[name]:>8.0f} {value / LIMITS[name]:>6.2f}")
    print(
        json.dumps(
            {
                "benchmark": "startup",
                **figures,
                "runs": len(runs),
                "machine": platform.processor() or platform.machine(),
                "python": platform.python_version(),
            }
        )
    )


if __name__ == "__main__":
    main()
