"""How many threads there are if nobody says: the cores, or the part of them that a container is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from musespark.engine import native
from musespark.engine.native import cores_in_quota, usable_cores


def group(folder: Path, own: str, **limits: str) -> int | None:
    """The answer for a process in the group `own`, with the given cpu.max in `root`, `root/a` and `root/a/b`."""
    for name, limit in limits.items():
        place = folder / name.replace("_", "/")
        place.mkdir(parents=True, exist_ok=True)
        (place / "cpu.max").write_text(f"{limit}\n")
    (folder / "own").write_text(own)
    return cores_in_quota(folder / "own", folder / "root")


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("max 100000", None), ("nonsense", None)],
)
def test_a_quota_is_rounded_up_to_whole_cores(tmp_path: Path, limit: str, cores: int | None) -> None:
    assert group(tmp_path, "0::/\n", root=limit) == cores


def test_the_smallest_limit_on_the_way_up_holds(tmp_path: Path) -> None:
    """A process in a group of version 1 (named) and of version 2 (nameless), the latter below two others."""
    own = "4:cpu,cpuacct:/elsewhere\n0::/a/b\n"
    assert group(tmp_path, own, root="max 100000", root_a="300000 100000", root_a_b="800000 100000") == 3


def test_a_machine_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert cores_in_quota(tmp_path / "missing", tmp_path) is None
    assert group(tmp_path, "0::/a\n") is None


def test_threads_are_as_many_as_the_quota_or_the_cores_if_those_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cores_in_quota", lambda: 1)
    assert usable_cores() == 1
    monkeypatch.setattr(native, "cores_in_quota", lambda: 10_000)
    most = usable_cores()
    monkeypatch.setattr(native, "cores_in_quota", lambda: None)
    assert usable_cores() == most
