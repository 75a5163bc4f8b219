"""The scripts of runs/gpu, with a toy model on the CPU: what can be known of them before a card is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
GPU = ROOT / "runs" / "gpu"


def run(script: str, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(out), "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(GPU / script), "--no-install", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_bench_measures_what_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "bench-tiny-cpu-runner-3.json").write_text('{"kept": true}')
    done = run("20_bench.sh", tmp_path, "--tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all done\n")
    assert 'runner-3 {"kept": true}' in done.stdout
    results = {path.stem[15:]: json.loads(path.read_text()) for path in tmp_path.glob("bench-tiny-cpu-*.json")}
    assert len(results) == 9
    for name in ("runner-1", "engine-1", "engine-3", "transformers-1", "transformers-3", "runner-1-unrecorded"):
        assert results[name]["tokens_per_s"] > 0
    # The same weights in transformers: bfloat16 sums in another order, nothing more.
    assert results["logits"]["divergence"] < 0.01
    assert "| transformers | 3 |" in (tmp_path / "bench-tiny-cpu.md").read_text()


@pytest.mark.slow
def test_the_tests_run_without_a_card(tmp_path: Path) -> None:
    """20 s, most of them imports of what the tests below this folder import anyway."""
    done = run("10_test.sh", tmp_path, "--tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[100%]" in (tmp_path / "tests.txt").read_text()


def test_without_a_card_they_say_so(tmp_path: Path) -> None:
    refused = run("10_test.sh", tmp_path)
    assert refused.returncode == 3
    assert "no CUDA device" in refused.stdout
    assert json.loads((tmp_path / "machine.json").read_text())["device"] == "cpu"


def test_what_is_missing_is_named() -> None:
    """Without site-packages everything is."""
    command = [sys.executable, "-S", str(GPU / "check.py"), "--tiny", "--no-install"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "missing: torch==2.13.0, numpy>=2.0, " in done.stdout
