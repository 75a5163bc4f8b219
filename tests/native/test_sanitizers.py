"""The native core under AddressSanitizer and UndefinedBehaviorSanitizer: a build of its own, and the tests on it.

Anything read or written out of bounds, and any undefined arithmetic, ends the interpreter that runs the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def runtime_of_the_sanitizer() -> str | None:
    """What the interpreter must load first; None: the compiler doesn't have it."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None or shutil.which("cmake") is None:
        return None
    paths = []
    for name in ("libasan.so", "libstdc++.so"):  # the second so that the first finds what throws exceptions
        asked = [compiler, f"-print-file-name={name}"]
        paths.append(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    return " ".join(map(os.path.realpath, paths)) if all(map(os.path.isabs, paths)) else None


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package whose native core is the sanitized one."""
    if runtime_of_the_sanitizer() is None:
        pytest.skip("this compiler has no AddressSanitizer")
    build, package = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("package")
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-DMUSESPARK_SANITIZE=ON"]
    configure.append(f"-DPython_EXECUTABLE={sys.executable}")
    jobs = str(len(os.sched_getaffinity(0)))
    for command in (configure, ["cmake", "--build", str(build), "-j", jobs]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(
        ROOT / "musespark", package / "musespark", ignore=shutil.ignore_patterns("csrc", "_native*.so", "__pycache__")
    )
    (extension,) = build.glob("_native*.so")
    shutil.copy(extension, package / "musespark" / "engine")
    shutil.copytree(ROOT / "tests", package / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", package)
    return package


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", ["test_kernels.py test_attention.py", "test_fuzz.py test_door.py", "test_invariance.py"]
)
def test_the_tests_of_the_native_core_touch_nothing_out_of_bounds(sanitized: Path, names: str) -> None:
    runtime = runtime_of_the_sanitizer()
    assert runtime is not None
    environment = os.environ | {
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # the interpreter itself leaks at its end
        "PYTHONPATH": str(sanitized),
        "PYTHONSAFEPATH": "1",
    }
    files = [str(sanitized / "tests" / "native" / name) for name in names.split()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-p",
        "no:cacheprovider",
        "-s",
        "--rootdir",
        str(sanitized),
        *files,
    ]
    done = subprocess.run(command, cwd=sanitized, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
