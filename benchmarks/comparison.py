"""What every row of the engine benchmark is made of: runs by turns, medians, percentiles, the table, the JSON lines."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table. ours and theirs: one figure for each run, in the order in which they were taken."""

    row: str
    model: str
    ours_format: str
    peer: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    wanted: float | None = None  # ours / theirs for what should be high, the largest such for what should be low
    better: Literal["higher", "lower"] = "higher"
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Ours over theirs, of the medians; NaN without a peer."""
        return statistics.median(self.ours) / statistics.median(self.theirs) if self.theirs else math.nan

    @property
    def best_ratio(self) -> float:
        """Of the best runs: what is left when whoever else used the machine is left out."""
        best = max if self.better == "higher" else min
        return best(self.ours) / best(self.theirs) if self.theirs else math.nan

    @property
    def verdict(self) -> str:
        """Whether the wanted ratio is reached, and if medians and best runs don't agree, by which of them."""
        if self.wanted is None or not self.theirs:
            return ""
        by_median, by_best = (
            ratio >= self.wanted if self.better == "higher" else ratio <= self.wanted
            for ratio in (self.ratio, self.best_ratio)
        )
        if by_median and by_best:
            return "reached"
        return (
            "NOT reached" if not by_median and not by_best else f"reached by {'medians' if by_median else 'best'} only"
        )

    def to_dict(self) -> dict[str, Any]:
        medians = {"ours_median": statistics.median(self.ours)}
        if self.theirs:
            medians["theirs_median"] = statistics.median(self.theirs)
        return (
            asdict(self) | medians | {"ratio": None if math.isnan(self.ratio) else self.ratio, "verdict": self.verdict}
        )


def by_turns(runs: int, *sides: Callable[[], float]) -> list[tuple[float, ...]]:
    """The figures of each side; every run asks all of them, the first one first in even runs and last in odd ones."""
    taken: list[list[float]] = [[] for _ in sides]
    for run in range(runs):
        order = range(len(sides)) if run % 2 == 0 else range(len(sides) - 1, -1, -1)
        for i in order:
            taken[i].append(sides[i]())
    return [tuple(figures) for figures in taken]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed (nearest rank)."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def number(value: float) -> str:
    """Three digits or more: 0.0612, 5.31, 592, 1,437."""
    if math.isnan(value):
        return "-"
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, 2 - magnitude)}f}"


def table(results: Sequence[Result]) -> str:
    lines = [
        f"{'row':26} {'model':5} {'ours':5} {'peer':22} {'ours':>9} {'theirs':>9} {'unit':10} "
        f"{'ratio':>6} {'best':>6} {'wanted':>7} {'runs':>4}"
    ]
    for result in results:
        ours = number(statistics.median(result.ours))
        theirs = number(statistics.median(result.theirs)) if result.theirs else "-"
        ratio, best = ("-" if math.isnan(x) else f"{x:.2f}" for x in (result.ratio, result.best_ratio))
        sign = ">=" if result.better == "higher" else "<="
        wanted = "" if result.wanted is None else f"{sign} {result.wanted:g}"
        lines.append(
            f"{result.row:26} {result.model:5} {result.ours_format:5} {result.peer:22} {ours:>9} {theirs:>9} "
            f"{result.unit:10} {ratio:>6} {best:>6} {wanted:>7} {len(result.ours):>4} {result.verdict}".rstrip()
        )
        lines += [f"{'':26} {name} {_short(value)}" for name, value in result.facts.items()]
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    return str(value)


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version()}


def busy_share(seconds: float = 0.3) -> float | None:
    """The share of all cores that is in use, by whomever: near 0 is what a measurement wants before it begins.

    None where there is no /proc/stat.
    """
    before = _cpu_times()
    time.sleep(seconds)
    after = _cpu_times()
    if before is None or after is None or after[1] == before[1]:
        return None
    return 1 - (after[0] - before[0]) / (after[1] - before[1])


def _cpu_times() -> tuple[int, int] | None:
    """Idle ticks and all ticks of all cores so far; time that another guest took from us is not idle."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    ticks = [int(word) for word in stat.read_text().splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def append(path: Path, document: dict[str, Any]) -> None:
    """One JSON line at the end of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(document) + "\n")
