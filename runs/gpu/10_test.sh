#!/usr/bin/env bash
# The tests of TorchRunner on this machine: marked gpu ones on the card, then the same code on the CPU. Minutes.
# runs/gpu/10_test.sh [--tiny] [--no-install]; with --tiny the CPU part only.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
out=${OUT:-runs/out/gpu}
"$python" runs/gpu/check.py "$@"
mkdir -p "$out"
marks=(-m "gpu or not gpu")
[[ " $* " == *" --tiny "* ]] && marks=(-m "not gpu" -k "native or bfloat16")
# 500 s: every call of these runs ends within nine minutes.
timeout 500 "$python" -m pytest -p no:cacheprovider -ra "${marks[@]}" tests/engine/test_torch_runner.py \
  tests/engine/test_torch_cuda.py 2>&1 | tee "$out/tests.txt" | tail -n 40
