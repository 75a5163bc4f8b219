"""How many requests a second the ledger admits and settles, and what that adds to a request, on SQLite and PostgreSQL.

    python benchmarks/ledger.py                       # SQLite in a temporary folder
    python benchmarks/ledger.py --postgresql          # and PostgreSQL: one of its own, or --url
    python benchmarks/ledger.py --requests 20000 --threads 4 --extensions 3

Each request opens a hold, extends it, and settles it, in one process with all triggers, checks and the journal on.
Threads share few organisations by default (`--organisations 1` is the worst case: all wait for the same row). Prints a
table and one JSON line; the figures are of the ledger alone, without HTTP and without a model. At the end the books are
verified. The PostgreSQL that it starts itself runs without fsync; with --url it is yours.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from musespark.accounts.credits import top_up
from musespark.accounts.database import Database
from musespark.accounts.ledger import Ledger
from musespark.accounts.lines import Lines
from musespark.accounts.prices import set_price
from musespark.accounts.reconcile import verify


@dataclass(frozen=True, slots=True)
class Result:
    """Latencies are of all ledger calls of one request together, in milliseconds."""

    database: str
    threads: int
    organisations: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    admission_p50_ms: float
    settlement_p50_ms: float
    extension_p50_ms: float
    difference: int


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of all are not above."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def measure(
    database: Database, folder: Path, requests: int, threads: int, organisations: int, extensions: int
) -> Result:
    ids = [f"org_{number}" for number in range(organisations)]

    def insert(tx) -> None:  # type: ignore[no-untyped-def]
        for id in ids:
            tx.execute("INSERT INTO organisations (id, name, created_at) VALUES (?, ?, 0)", (id, id))

    database.transact(insert)
    for id in ids:
        top_up(database, id, 10**15, "start")
    price = set_price(database, "muse-spark", text_in=1250, cached_in=150, output=4250)
    ledger = Ledger(database, folder)
    ledger.start()
    times: dict[str, list[float]] = {"request": [], "admission": [], "extension": [], "settlement": []}
    lock = threading.Lock()

    def work(thread: int) -> None:
        mine: dict[str, list[float]] = {name: [] for name in times}
        for number in range(requests // threads):
            organisation = ids[(thread + number) % organisations]
            t0 = time.perf_counter()
            hold = ledger.open_hold(
                f"req_{thread}_{number}", organisation, f"{organisation}/p", f"{organisation}/k", price,
                text_in=500, output=64,
            )  # fmt: skip
            t1 = time.perf_counter()
            for step in range(extensions):
                ledger.extend(hold, Lines(text_in=500, output=64 * step + 40), 64)
            t2 = time.perf_counter()
            ledger.settle(hold, Lines(text_in=300, cached_in=200, output=64 * extensions + 50))
            t3 = time.perf_counter()
            mine["request"].append(t3 - t0)
            mine["admission"].append(t1 - t0)
            mine["settlement"].append(t3 - t2)
            if extensions:
                mine["extension"].append((t2 - t1) / extensions)
        with lock:
            for name, values in mine.items():
                times[name] += values

    work_threads = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    start = time.perf_counter()
    for thread in work_threads:
        thread.start()
    for thread in work_threads:
        thread.join()
    elapsed = time.perf_counter() - start
    ledger.close()
    report = verify(database, folder / "journal")
    assert report.sound, report.findings[:3]
    ms = {name: [value * 1e3 for value in values] or [0.0] for name, values in times.items()}
    return Result(
        database.dialect, threads, organisations, len(times["request"]) / elapsed,
        percentile(ms["request"], 0.5), percentile(ms["request"], 0.99), percentile(ms["admission"], 0.5),
        percentile(ms["settlement"], 0.5), percentile(ms["extension"], 0.5), report.difference,
    )  # fmt: skip


@contextmanager
def postgres_url(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    from tests.postgres import running_server

    with running_server() as server:
        yield server.empty_database()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--organisations", type=int, default=4)
    parser.add_argument("--extensions", type=int, default=0, help="times that a hold grows")
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--url", help="a PostgreSQL database to use; it must be empty")
    options = parser.parse_args()
    sizes = (options.requests, options.threads, options.organisations, options.extensions)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        database = Database.open(Path(folder))
        results.append(measure(database, Path(folder), *sizes))
        database.close()
    if options.postgresql or options.url:
        with postgres_url(options.url) as url, tempfile.TemporaryDirectory() as folder:
            database = Database.open(Path(folder), url)
            results.append(measure(database, Path(folder), *sizes))
            database.close()
    print(f"{'':12}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'admit':>8}{'extend':>8}{'settle':>8}{'diff':>6}")
    for r in results:
        print(
            f"{r.database:12}{r.requests_per_s:12,.0f}{r.p50_ms:9.3f}{r.p99_ms:9.3f}{r.admission_p50_ms:8.3f}"
            f"{r.extension_p50_ms:8.3f}{r.settlement_p50_ms:8.3f}{r.difference:6}"
        )
    machine = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, "machine": platform.processor()}
    print(json.dumps({"results": [asdict(result) for result in results], "extensions": options.extensions} | machine))


if __name__ == "__main__":
    main()
