"""benchmarks/load.py on a toy, so that it still runs on the day when somebody wants the figures of the large one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from musespark.model.checkpoint import open_checkpoint

ROOT = Path(__file__).parent.parent.parent


def test_a_toy_is_written_once_and_measured(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "load.py", tmp_path, "--preset", "toy-glimmer", "--threads", "1"]
    command += ["--prompt", "70", "--decode", "3", "--repeats", "2"]
    runs = []
    for _ in range(2):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        runs.append((done.stdout, (tmp_path / "toy-glimmer-int4" / "model.safetensors").stat().st_mtime_ns))
    assert "writing model.safetensors" in runs[0][0]
    assert "writing" not in runs[1][0]
    assert runs[0][1] == runs[1][1]
    found = json.loads(runs[1][0].splitlines()[-1])
    assert found["benchmark"] == "load"
    ours = found["results"]["musespark"]
    assert 0 < ours["start_s"] < ours["first_token_s"]
    assert ours["prefill_per_s"][0] == 70 / min(ours["prefill_s"])
    assert ours["peak_bytes"] > 10**7
    peer = (ROOT / ".venv-peers" / "bin" / "python").exists()
    assert (found["ratio"] is not None) == peer
    if peer:
        theirs = found["results"]["llama.cpp"]
        assert found["ratio"]["decode_per_s"] == ours["decode_per_s"][0] / theirs["decode_per_s"][0]

    checkpoint = open_checkpoint(tmp_path / "toy-glimmer-int4")
    assert checkpoint.config.vision is None
    weight = checkpoint.weight("lm_head.weight").float32()
    assert 0.9 < weight.std() * np.sqrt(weight.shape[1]) < 1.1  # as large as training starts with


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path: Path) -> None:
    command = [
        sys.executable,
        ROOT / "benchmarks" / "load.py",
        tmp_path,
        "--preset",
        "llama-4-maverick",
        "--write-only",
    ]
    if shutil.disk_usage(tmp_path).free > 400 * 10**9:
        pytest.skip("Maverick would fit on this disk")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "can't be written: it takes" in done.stderr
    assert not list(tmp_path.iterdir())
