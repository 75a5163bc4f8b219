"""How much memory this process may use: of the machine, or of its container (Linux); and what it takes now.

Containers are control groups, of version 2 or 1. Both tell a limit, what is used, and how much of that only keeps
copies of files; the names differ.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Version:
    """What a version of control groups calls things. `line` is of /proc/self/cgroup, up to the group's path."""

    line: str
    folder: str
    limit: str
    used: str
    files: str  # in memory.stat; in version 1 only with its prefix it counts the groups below


VERSIONS = (
    _Version(r"0::/", ".", "memory.max", "memory.current", "inactive_file"),
    _Version(
        r"\d+:[^:]*\bmemory\b[^:]*:/", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    ),
)


def _limits(proc: Path, root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of the control groups of this process that have a limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    limits = []
    for version in VERSIONS:
        for group in [line[found.end() :] for line in lines if (found := re.match(version.line, line))]:
            for folder in (Path(group), *Path(group).parents):  # a limit holds for the groups below it, too
                with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                    limits.append(_limit(root / version.folder / folder, version))
    return limits


def _limit(folder: Path, version: _Version) -> tuple[int, int]:
    limit = int((folder / version.limit).read_text())
    used = int((folder / version.used).read_text())
    files = re.search(rf"^{version.files} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    return limit, used - (int(files[1]) if files else 0)


def resident_bytes(proc: Path = PROC) -> int:
    """Memory that this process takes now; 0 where the system doesn't say it."""
    with contextlib.suppress(OSError):
        found = re.search(r"^VmRSS:\s*(\d+) kB$", (proc / "self" / "status").read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    return 0
