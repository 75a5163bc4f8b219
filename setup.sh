#!/usr/bin/env bash
# setup.sh VENV EXTRAS: creates VENV, installs musespark with EXTRAS ("" or "[dev]") into it and builds the native core.
# Called by the Makefile. Ends with one clear sentence when something is missing; the whole output is in build/setup.log.
set -euo pipefail
venv=$1 extras=$2
python=${PYTHON:-python3}

fail() { echo "setup: $1" >&2; exit 1; }
command -v "$python" >/dev/null || fail "$python was not found; install Python 3.11 or newer, or name one with PYTHON=/path/to/python3."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old; musespark needs Python 3.11 or newer (PYTHON=/path/to/python3 names another)."
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "this Python has no venv module; install it (Debian and Ubuntu: apt-get install python3-venv)."
"$python" -c 'import os, sys, sysconfig
sys.exit(not any(os.path.exists(f"{sysconfig.get_path(name)}/Python.h") for name in ("include", "platinclude")))' ||
  fail "this Python has no header files, which the native core needs; install them (Debian and Ubuntu: apt-get install python3-dev)."
compiler=${CXX:-$(command -v c++ || command -v g++ || command -v clang++ || true)}
[ -n "$compiler" ] || fail "no C++ compiler was found; install one (Debian and Ubuntu: apt-get install g++) or name it with CXX=."
# Two things that the core uses and that a compiler a little too old says it has.
"$compiler" -std=c++20 -x c++ -o /dev/null - 2>/dev/null <<< '#include <atomic>
#include <bit>
int main() { std::atomic<int> x{0}; x.notify_one(); return std::bit_cast<int>(0u); }' ||
  fail "$compiler can't compile C++20; install g++ 11 or clang 14 or newer, or name another with CXX=."

mkdir -p build
log=build/setup.log
: > "$log"
step() { echo "setup: $1" | tee -a "$log"; }

[ -x "$venv/bin/python" ] || { step "creating $venv"; "$python" -m venv "$venv" >> "$log" 2>&1 || fail "could not create $venv; see $log."; }
step "installing musespark$extras and building the native core into $venv (a few minutes the first time)"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-input -e ".$extras" 2>&1 | tee -a "$log" |
  while IFS= read -r line; do
    case $line in
      "Collecting "*) line=${line#Collecting } && echo "  fetching ${line%% *}" ;;
      *"Building editable for musespark"*started) echo "  compiling the native core" ;;
      "Installing collected packages"*) echo "  installing packages" ;;
    esac
  done ||
  { tail -n 20 "$log" >&2; fail "the installation failed; the lines above and $log say why."; }
touch "$venv/.ready"
step "done"
