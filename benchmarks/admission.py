"""What limits and money add to a request: the time from its arrival to its admission, and that of its settlement.

    .venv/bin/python benchmarks/admission.py [--requests 2000] [--database-url postgresql://…]

In one process, without HTTP and without a model, as the server calls it: on an event loop, the database in threads.
Each request has limits of its key, project and organisation, a price list, credit and a cap. `added` is what comes
before the first token (arrive and admit); settling comes after the last. One at a time, then 16 at once. Prints a table
and, as the last line, one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

from musespark.accounts.accounts import Accounts
from musespark.accounts.limits import Limits
from musespark.accounts.limits_config import set_limits
from musespark.accounts.limits_shared import SharedLimitStore
from musespark.accounts.verify import Identity
from musespark.api.metering import Metering
from musespark.engine.request import Usage
from musespark.providers.base import PromptSize
from tests.api.customer import Customer, price_list

MODEL = "model"
PROMPT = PromptSize(text_tokens=400, image_tokens=0, num_images=0, most_completion_tokens=1000)
USAGE = Usage(400, 64, 0, 100, 0)
PLENTY = Limits(requests_per_minute=10**6, tokens_per_minute=10**9, concurrent_requests=10**4)
TARGET_MS = 0.5


async def request(metering: Metering, identity: Identity, number: str) -> tuple[float, float]:
    """Milliseconds until it is admitted, and of its settlement."""
    began = time.perf_counter()
    meter = await metering.arrive(identity, f"req_{number}", {})
    meter.model = MODEL
    await meter.admit(PROMPT)
    admitted = time.perf_counter()
    await meter.settle(USAGE, "completed")
    await meter.end(USAGE, "completed")
    return (admitted - began) * 1000, (time.perf_counter() - admitted) * 1000


async def measure(metering: Metering, identity: Identity, name: str, count: int, at_once: int) -> dict[str, float]:
    times: list[tuple[float, float]] = []

    async def client(own: int) -> None:
        for number in range(count // at_once):
            times.append(await request(metering, identity, f"{name}_{own}_{number}"))

    began = time.perf_counter()
    await asyncio.gather(*(client(own) for own in range(at_once)))
    seconds = time.perf_counter() - began
    added, settling = (sorted(column) for column in zip(*times, strict=True))
    return {
        "added_p50_ms": round(statistics.median(added), 3),
        "added_p99_ms": round(added[len(added) * 99 // 100], 3),
        "settle_p50_ms": round(statistics.median(settling), 3),
        "settle_p99_ms": round(settling[len(settling) * 99 // 100], 3),
        "requests_per_s": round(len(times) / seconds),
    }


async def run(accounts: Accounts, identity: Identity, count: int, shared: bool) -> dict[str, dict[str, float]]:
    metering = Metering(accounts, SharedLimitStore(accounts.database) if shared else None)
    await measure(metering, identity, "warm", 100, 1)
    results = {str(at_once): await measure(metering, identity, f"run{at_once}", count, at_once) for at_once in (1, 16)}
    await metering.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--database-url", default=None, help="an empty PostgreSQL database; default: SQLite")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Accounts.open(Path(folder) / "state", arguments.database_url) as accounts,
    ):
        accounts.ledger.start()
        price_list(accounts, MODEL)
        customer = Customer(accounts, "", MODEL, cap=10**15)
        identity = accounts.verify(customer.headers["authorization"].removeprefix("Bearer "))
        for subject in (identity.organisation_id, identity.project_id, identity.key_id):
            set_limits(accounts.database, subject, PLENTY)
        shared = arguments.database_url is not None
        results = asyncio.run(run(accounts, identity, arguments.requests, shared))
    store = "PostgreSQL, limits shared" if shared else "SQLite, limits in memory"
    for at_once, result in results.items():
        print(f"{at_once:>2} at once: " + "   ".join(f"{name} {value}" for name, value in result.items()))
    p50 = results["1"]["added_p50_ms"]
    print(f"added p50 {p50} ms; the target is {TARGET_MS} ms: {'met' if p50 < TARGET_MS else 'MISSED'}")
    print(json.dumps({"store": store, "at_once": results, "python": platform.python_version()}))


if __name__ == "__main__":
    main()
