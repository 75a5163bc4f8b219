"""Every equality of the engine holds with every pair of features on and off, `python -O` too."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.feature_matrix import FEATURES, NOT_ALONE, RUN, Row, difference, rows


@pytest.mark.parametrize("row", rows(), ids=lambda row: "+".join(sorted(row)) or "nothing")
def test_no_pair_of_features_changes_an_answer(row: Row) -> None:
    found, engine = difference(row)
    assert found is None, found
    stats = engine.stats()
    if "guesses" in row and not row & NOT_ALONE:
        assert 0 < stats.num_accepted_tokens_total < stats.num_drafted_tokens_total
    if "warm" in row:
        assert stats.num_cached_tokens_total > 0


def test_the_rows_hold_every_pair_on_and_off() -> None:
    for one, other in itertools.combinations(FEATURES, 2):
        assert {(one in row, other in row) for row in rows()} == set(itertools.product((False, True), repeat=2))
    assert any(len(row & set(RUN)) >= 3 for row in rows())


def test_nothing_depends_on_assert() -> None:
    """PYTHONOPTIMIZE=1: a check that guards something must not be an assert."""
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONOPTIMIZE": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.engine.feature_matrix"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("rows are equal\n")
