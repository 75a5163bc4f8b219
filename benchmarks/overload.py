"""What happens at twice the load that the server can carry: how long those wait who are let in, and who is not.

    .venv/bin/python benchmarks/overload.py [--seconds 10] [--environment .venv] [--running 16] [--waiting 8]

Starts `musespark serve` with the model in the box, a queue of `--waiting` requests and a state folder of its own. First
as many clients as there are places ask one request after the other (128 words in, 64 tokens out, streamed): all places
are busy and nobody waits. That gives the capacity in requests a second and the latency to compare with. Then requests
come at random moments, twice as many a second as the capacity, whether earlier ones are answered or not. Of each is
noted: its status, the time to its first token and to its end. Prints a table and, as the last line, one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORDS = Path(__file__).read_text().split()
NUM_WORDS, MAX_TOKENS = 128, 64
ANSWER_WITHIN_S = 60.0  # for one request; longer is a hang


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request; times from the moment it was sent."""

    status: int
    first_s: float
    whole_s: float
    retry_after_ms: int | None
    ended: bool  # with [DONE], or with an error object


@dataclass(frozen=True, slots=True)
class Server:
    port: int
    key: str
    pid: int

    async def ask(self, seed: int) -> Outcome:
        """Send one request over a connection of its own and read all of the answer. Raises TimeoutError."""
        return await asyncio.wait_for(self._ask(seed), ANSWER_WITHIN_S)

    async def _ask(self, seed: int) -> Outcome:
        text = " ".join(random.Random(seed).choices(WORDS, k=NUM_WORDS))
        body = json.dumps(
            {
                "model": "muse-spark-nano",
                "messages": [{"role": "user", "content": text}],
                "max_tokens": MAX_TOKENS,
                "ignore_eos": True,
                "stream": True,
            }
        ).encode()
        started_s = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {self.key}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        answer_head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first_s, tail = 0.0, b""
        while block := await reader.read(65_536):
            if not first_s and b'"content":"' in block.replace(b'"content":""', b""):
                first_s = time.perf_counter() - started_s
            tail = (tail + block)[-4096:]
        writer.close()
        hint = re.search(r"retry-after-ms: (\d+)", answer_head)
        status = int(answer_head.split()[1])
        return Outcome(
            status,
            first_s,
            time.perf_counter() - started_s,
            int(hint[1]) if hint else None,
            b"[DONE]" in tail if status == 200 else b'"error"' in tail,
        )


@contextmanager
def serving(environment: Path, running: int, waiting: int, **settings: str) -> Iterator[Server]:
    """A server that runs until the block ends; `settings` are further environment variables."""
    with tempfile.TemporaryDirectory() as state:
        log = Path(state, "log")
        limits = {"MUSESPARK_MAX_RUNNING": str(running), "MUSESPARK_MAX_WAITING": str(waiting)}
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [environment / "bin/musespark", "serve", "--port", "0"],
                env=os.environ | limits | settings | {"MUSESPARK_STATE_DIR": state, "PYTHONUNBUFFERED": "1"},
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(r"http://127.0.0.1:(\d+)/v1.*?(sk-muse-\S+)", log.read_text(), re.DOTALL)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not become ready:\n{log.read_text()}")
                time.sleep(0.05)
            yield Server(int(found[1]), found[2], process.pid)
        finally:
            process.terminate()
            process.wait(timeout=60)


async def one_after_the_other(server: Server, num_clients: int, seconds: float) -> tuple[list[Outcome], float]:
    """All places busy. The outcomes, and how many requests a second that were."""
    end_s = time.perf_counter() + seconds
    outcomes: list[Outcome] = []

    async def client(number: int) -> None:
        while time.perf_counter() < end_s:
            number += num_clients
            outcomes.append(await server.ask(number))

    await asyncio.gather(*(client(number) for number in range(num_clients)))
    return outcomes, len(outcomes) / (time.perf_counter() - end_s + seconds)


async def at_random(server: Server, per_second: float, seconds: float) -> list[Outcome]:
    """Requests that come `per_second` on average, independently of each other and of the answers."""
    chance = random.Random(1)
    tasks = []
    moment_s = start_s = time.perf_counter()
    while moment_s < start_s + seconds:
        await asyncio.sleep(max(0.0, moment_s - time.perf_counter()))
        tasks.append(asyncio.create_task(server.ask(1_000_000 + len(tasks))))
        moment_s += chance.expovariate(per_second)
    return await asyncio.gather(*tasks)


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


async def measure(server: Server, running: int, seconds: float) -> dict[str, float]:
    await one_after_the_other(server, running, 1.0)  # warm
    full, capacity = await one_after_the_other(server, running, seconds)
    over = await at_random(server, 2 * capacity, seconds)
    admitted = [outcome for outcome in over if outcome.status == 200]
    refused = [outcome for outcome in over if outcome.status == 429]
    full_p99, over_p99 = p99([o.whole_s for o in full]), p99([o.whole_s for o in admitted])
    return {
        "capacity_per_s": capacity,
        "offered_per_s": len(over) / seconds,
        "answered_per_s": len(admitted) / seconds,
        "num_admitted": len(admitted),
        "num_refused": len(refused),
        "num_other": len(over) - len(admitted) - len(refused),
        "num_without_an_end": sum(not outcome.ended for outcome in over + full),
        "num_refused_without_hint": sum(outcome.retry_after_ms is None for outcome in refused),
        "p99_s_at_capacity": full_p99,
        "p99_s_at_twice": over_p99,
        "ratio": over_p99 / full_p99,
        "p99_first_token_s_at_capacity": p99([o.first_s for o in full]),
        "p99_first_token_s_at_twice": p99([o.first_s for o in admitted]),
        "p99_refusal_s": p99([o.whole_s for o in refused]) if len(refused) > 1 else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv", help="the environment `make serve` made")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of the two parts")
    parser.add_argument("--running", type=int, default=16, help="MUSESPARK_MAX_RUNNING")
    parser.add_argument("--waiting", type=int, default=8, help="MUSESPARK_MAX_WAITING")
    arguments = parser.parse_args()
    with serving(arguments.environment, arguments.running, arguments.waiting) as server:
        figures = asyncio.run(measure(server, arguments.running, arguments.seconds))
    for name, value in figures.items():
        print(f"{name:<32} {value:>10.3f}")
    system = {"python": sys.version.split()[0], "machine": platform.machine(), "cpus": os.cpu_count()}
    print(
        json.dumps(
            {"benchmark": "overload", "running": arguments.running, "waiting": arguments.waiting} | figures | system
        )
    )


if __name__ == "__main__":
    main()
