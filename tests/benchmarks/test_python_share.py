"""benchmarks/python_share.py on a few steps, so that it still runs on the day when somebody wants its figures."""

from __future__ import annotations

import pytest

from benchmarks.python_share import SAMPLING, measure
from musespark.model.checkpoint import BUNDLED


@pytest.mark.parametrize("how", SAMPLING)
def test_a_step_is_partly_python_and_partly_the_core(how: str) -> None:
    step_s, share = measure(BUNDLED.resolve(), how, streams=2, num_steps=20, profile=None)
    assert 0 < step_s < 10
    assert 0 < share < 1
