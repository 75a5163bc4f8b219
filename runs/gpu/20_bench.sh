#!/usr/bin/env bash
# Speed of TorchRunner and of transformers on this card. Ends after eight minutes; run it again until it says "all done".
# runs/gpu/20_bench.sh [--tiny] [--no-install]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
"$python" runs/gpu/check.py "$@"
tiny=()
[[ " $* " == *" --tiny "* ]] && tiny=(--tiny)
PYTHONPATH=. timeout 530 "$python" runs/gpu/bench.py --seconds 400 "${tiny[@]}"
