"""How long a usage report takes when 10 million requests have been made.

    .venv/bin/python benchmarks/usage.py [--requests 10000000] [--days 90] [--database-url postgresql://…]

Fills a fresh database's rollups as these requests would have: each falls into an hour (three times as many at noon as
at midnight, growing over the days), a model (of 3), a project (of 20) and a key (of 60, three for each project), most
on few of them. Nothing is added up beforehand that settling a request would not have added: rows are inserted through
the same table, one per hour and day, model, project and key. Then a server answers reports over HTTP, each
`--repeats` times. Prints a table and, as the last line, one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from musespark.accounts.database import Database
from musespark.accounts.tables.usage import usage_rollups
from tests.api.world import World, running_world

MODELS, PROJECTS, KEYS_OF_PROJECT = 3, 20, 3
BATCH = 20_000
TARGET_MS = 300
REPORTS = {
    "30 days, all together": "bucket=day",
    "90 days by model": "bucket=day&group_by=model&{range}",
    "90 days by key": "bucket=day&group_by=key&{range}",
    "90 days by project, one model": "bucket=day&group_by=project&model=model-0&{range}",
    "24 hours by key": "bucket=hour&group_by=key",
    "41 days of hours": "bucket=hour&{hours}",
    "41 days of hours, one key": "bucket=hour&key=key_0&{hours}",
    "90 days by key as CSV": "bucket=day&group_by=key&format=csv&{range}",
}


def shares(count: int, dice: np.random.Generator) -> np.ndarray:
    """How much of the traffic each of `count` has: the first most, by Zipf's law, in a random order."""
    weights = 1.0 / np.arange(1, count + 1)
    return dice.permutation(weights / weights.sum())


def hourly(days: int, total: int, dice: np.random.Generator) -> np.ndarray:
    """Requests in each hour (days * 24,), `total` together: more in the daytime, and more every day."""
    hour = np.arange(days * 24)
    weight = (2 - np.cos(2 * np.pi * (hour % 24) / 24)) * (1 + hour / hour.size)
    return dice.multinomial(total, weight / weight.sum())


def rows(organisation_id: str, days: int, total: int, now: int) -> Iterator[dict[str, object]]:
    """The rollups that `total` requests leave behind."""
    dice = np.random.default_rng(6)
    keys = PROJECTS * KEYS_OF_PROJECT
    odds = np.outer(shares(MODELS, dice), shares(keys, dice)).ravel()  # of (model, key)
    first = now // 86_400 * 86_400 - (days - 1) * 86_400
    daily = np.zeros(odds.size, dtype=np.int64)
    for number, count in enumerate(hourly(days, total, dice)):
        requests = dice.multinomial(count, odds)
        daily += requests
        start = first + number * 3600
        yield from _of(organisation_id, "hour", start, requests)
        if number % 24 == 23:
            yield from _of(organisation_id, "day", start - 23 * 3600, daily)
            daily[:] = 0


def _of(organisation_id: str, granularity: str, start: int, requests: np.ndarray) -> Iterator[dict[str, object]]:
    keys = PROJECTS * KEYS_OF_PROJECT
    for place in np.flatnonzero(requests):
        count, (model, key) = int(requests[place]), divmod(int(place), keys)
        tokens = {"text_in": 900, "image_in": 40, "cached_in": 700, "output": 250, "reasoning": 120}
        yield {
            "organisation_id": organisation_id,
            "granularity": granularity,
            "start": start,
            "model": f"model-{model}",
            "project_id": f"proj_{key // KEYS_OF_PROJECT}",
            "key_id": f"key_{key}",
            "requests": count,
            **{unit: each * count for unit, each in tokens.items()},
            "amount_nano": 2_500_000 * count,
        }


def fill(database: Database, organisation_id: str, days: int, total: int, now: int) -> tuple[int, int]:
    """Returns how many rows there are, and how many requests they stand for by the hour."""
    batch: list[dict[str, object]] = []
    num_rows = num_requests = 0

    def write() -> None:
        with database.write() as connection:
            connection.execute(sa.insert(usage_rollups), batch)
        batch.clear()

    for row in rows(organisation_id, days, total, now):
        batch.append(row)
        num_rows += 1
        num_requests += int(row["requests"]) if row["granularity"] == "hour" else 0  # type: ignore[call-overload]
        if len(batch) == BATCH:
            write()
    if batch:
        write()
    return num_rows, num_requests


def measure(world: World, query: str, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        answer = world.client.get(f"/v1/usage?{query}")
        times.append((time.perf_counter() - began) * 1000)
        assert answer.status_code == 200, answer.text
        assert len(answer.content) > 100
    return times


def organisation_of(world: World) -> str:
    return world.accounts.verify(world.key).organisation_id


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--database-url", default=None, help="an empty PostgreSQL database; default: SQLite")
    arguments = parser.parse_args()
    now = int(time.time())
    with tempfile.TemporaryDirectory() as folder:
        options = {} if arguments.database_url is None else {"database_url": arguments.database_url}
        with running_world(Path(folder) / "state", **options) as world:
            began = time.perf_counter()
            filled = fill(world.accounts.database, organisation_of(world), arguments.days, arguments.requests, now)
            print(f"{filled[0]:,} rollups of {filled[1]:,} requests, made in {time.perf_counter() - began:.0f} s")
            end = now // 86_400 * 86_400 + 86_400
            ranges = {
                "range": f"start={end - arguments.days * 86_400}&end={end}",
                "hours": f"start={end - 41 * 86_400}&end={end}",
            }
            results = {}
            for name, query in REPORTS.items():
                times = measure(world, query.format(**ranges), arguments.repeats)
                results[name] = {"median_ms": round(statistics.median(times), 1), "max_ms": round(max(times), 1)}
                print(
                    f"{name:32} median {results[name]['median_ms']:7.1f} ms   slowest {results[name]['max_ms']:7.1f} ms"
                )
    slowest = max(result["max_ms"] for result in results.values())
    print(f"slowest {slowest:.0f} ms; the target is {TARGET_MS} ms: {'met' if slowest < TARGET_MS else 'MISSED'}")
    document = {"requests": filled[1], "rollups": filled[0], "reports": results, "python": platform.python_version()}
    print(json.dumps(document | {"machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
