#!/bin/sh
# Installs the engines that we measure and check ourselves against into their own environment, from the package registry:
#
#     benchmarks/peers.sh [FOLDER]        # FOLDER is .venv-peers in the repository's root; `make peers` does the same
#
# llama-cpp-python comes as source and compiles llama.cpp for this machine: 10 to 30 minutes on one core, once. Needs a C++
# compiler. The scripts that use a peer talk to it in a process of its own, so nothing here can change what we import.
set -eu

root="$(cd "$(dirname "$0")/.." && pwd)"
folder="$(mkdir -p "${1:-$root/.venv-peers}" && cd "${1:-$root/.venv-peers}" && pwd)"  # absolute: cmake runs elsewhere
PYTHON="${PYTHON:-python3}"

[ -x "$folder/bin/python" ] || "$PYTHON" -m venv "$folder"

# Only the library is needed: no server, no tools, no picture tower, and not `common`, which the package switches on by
# force and which would double the time. (A plain variable of the same name wins over the forced cache entry.)
echo 'set(LLAMA_BUILD_COMMON OFF)' > "$folder/only-the-library.cmake"
CMAKE_ARGS="-DCMAKE_PROJECT_llama_cpp_INCLUDE=$folder/only-the-library.cmake -DLLAVA_BUILD=OFF -DGGML_NATIVE=ON" \
  "$folder/bin/pip" install --progress-bar off --no-binary llama-cpp-python "llama-cpp-python==0.3.36"

"$folder/bin/python" -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__, llama_cpp.llama_print_system_info().decode())'
touch "$folder/.ready"
