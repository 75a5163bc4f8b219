"""How much memory this process may use: of the machine, or of the container that it runs in (Linux, version 2)."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")


def total_memory_bytes(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """The memory of the machine, or the limit of the container if that is lower."""
    limits = [limit for limit, _ in _limits(proc, groups)]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


def available_memory_bytes(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """What of it can be had now, without swapping: what is free, and what only keeps copies of files.

    Where the system doesn't say it, all of the memory.
    """
    available = total_memory_bytes(proc, groups)
    with contextlib.suppress(OSError):
        found = re.search(r"^MemAvailable:\s*(\d+) kB$", (proc / "meminfo").read_text(), re.MULTILINE)
        if found is not None:
            available = min(available, int(found[1]) * 1024)
    return max(0, min([available, *(limit - used for limit, used in _limits(proc, groups))]))


def _limits(proc: Path, root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of the control groups of this process that have a limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    limits = []
    for group in [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]:
        for folder in (Path(group), *Path(group).parents):  # a limit holds for the groups below it, too
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                limit = int((root / folder / "memory.max").read_text())
                used = int((root / folder / "memory.current").read_text())
                files = re.search(r"^inactive_file (\d+)$", (root / folder / "memory.stat").read_text(), re.MULTILINE)
                limits.append((limit, used - (int(files[1]) if files else 0)))
    return limits
