import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_what_we_set_for_torch_reaches_no_other_engine() -> None:
    """llama.cpp decodes five times slower with it, which once looked like our being eleven times as fast."""
    program = (
        "import os, musespark.training, peers\n"
        "print(os.environ['OMP_WAIT_POLICY'], 'OMP_WAIT_POLICY' in peers.environment(), peers.environment(A='b')['A'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["passive", "False", "b"]
