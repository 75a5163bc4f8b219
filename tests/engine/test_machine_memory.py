"""Memory that may be used: the machine's, or less in a container. Files are written as Linux writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from musespark.engine.machine_memory import available_memory_bytes, total_memory_bytes

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/a/b\n")
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable:   102400 kB\n")
    return tmp_path / "proc"


def limited(root: Path, group: str, limit: str, current: int = 0, inactive_file: int = 0) -> Path:
    folder = root / "groups" / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive_file}\nactive_file 7\n")
    return root / "groups"


def test_without_limits_it_is_the_machines_and_what_the_kernel_calls_available(proc: Path, tmp_path: Path) -> None:
    assert total_memory_bytes(proc, tmp_path / "groups") == MACHINE
    assert available_memory_bytes(proc, tmp_path / "groups") == 100 * MIB


def test_where_the_system_does_not_say_it_all_is_available(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path, tmp_path) == MACHINE


@pytest.mark.parametrize("group", ["a/b", "a", "."])
def test_the_limit_of_the_group_or_of_one_above_it_holds(group: str, proc: Path, tmp_path: Path) -> None:
    groups = limited(tmp_path, group, str(50 * MIB), current=30 * MIB, inactive_file=10 * MIB)
    assert total_memory_bytes(proc, groups) == 50 * MIB
    assert available_memory_bytes(proc, groups) == 30 * MIB  # copies of files make room


@pytest.mark.parametrize("group", ["a/b", "a", "."])
def test_groups_of_version_1_have_other_names(group: str, tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("4:cpu,memory:/a/b\n3:cpuset:/a\n0::/\n")
    folder = tmp_path / "groups" / "memory" / group
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{50 * MIB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{30 * MIB}\n")
    (folder / "memory.stat").write_text(f"inactive_file 7\ntotal_inactive_file {10 * MIB}\n")
    assert total_memory_bytes(tmp_path, tmp_path / "groups") == 50 * MIB
    assert available_memory_bytes(tmp_path, tmp_path / "groups") == 30 * MIB


def test_a_group_of_version_1_without_a_limit_has_the_largest_number(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("4:memory:/\n")
    folder = tmp_path / "groups" / "memory"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (folder / "memory.usage_in_bytes").write_text("5\n")
    (folder / "memory.stat").write_text("")
    assert total_memory_bytes(tmp_path, tmp_path / "groups") == available_memory_bytes(tmp_path, tmp_path / "groups")
    assert total_memory_bytes(tmp_path, tmp_path / "groups") == MACHINE


def test_the_lowest_limit_counts_and_one_that_is_used_up_leaves_nothing(proc: Path, tmp_path: Path) -> None:
    limited(tmp_path, "a", str(80 * MIB), current=90 * MIB)
    groups = limited(tmp_path, "a/b", str(90 * MIB))
    assert total_memory_bytes(proc, groups) == 80 * MIB
    assert available_memory_bytes(proc, groups) == 0


def test_no_limit_and_another_group_do_not_count(proc: Path, tmp_path: Path) -> None:
    limited(tmp_path, "a/b", "max")
    groups = limited(tmp_path, "c", str(MIB))
    assert total_memory_bytes(proc, groups) == MACHINE


def test_a_limit_above_the_machine_is_the_machines(proc: Path, tmp_path: Path) -> None:
    assert total_memory_bytes(proc, limited(tmp_path, "a", str(MACHINE * 2))) == MACHINE
