"""What this machine has of what the GPU runs need, and pip's help with the rest.

    python runs/gpu/check.py [--tiny] [--no-install]

Prints a table, writes machine.json, exits with 3 if something is missing: a package, or (without --tiny) a CUDA device
that torch can use.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# Of what `musespark` needs, what TorchRunner, the engine and their tests import; with the versions of pyproject.toml.
PACKAGES = (
    *("torch", "numpy", "safetensors", "tokenizers", "pillow", "jinja2", "llguidance"),
    *("transformers", "pytest", "pytest-timeout"),
)


def wanted() -> dict[str, str]:
    """Package -> requirement, as pyproject.toml has it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = {match[1]: match[0].strip('"') for match in re.finditer(r'"([a-z0-9-]+)(?:\[[a-z]+\])?[=<>~][^"]*"', text)}
    return {name: found[name] for name in PACKAGES}


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def install(requirements: list[str]) -> None:
    print(f"installing {', '.join(requirements)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *requirements], check=False)
    if done.returncode:
        print("pip could not; is there a package index that it can reach?", flush=True)


def machine() -> dict[str, object]:
    """The device that torch sees, in words and numbers. In a process of its own: torch may just have been installed."""
    code = (
        "import json, torch; c = torch.cuda.is_available(); p = torch.cuda.get_device_properties(0) if c else None;"
        "print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda, 'device': p.name if c else 'cpu',"
        "'memory_bytes': p.total_memory if c else 0, 'capability': [p.major, p.minor] if c else []}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"torch": None, "problem": done.stderr.strip().splitlines()[-1]}
    return dict(json.loads(done.stdout)) | {"python": platform.python_version(), "system": platform.platform()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a CPU will do")
    parser.add_argument("--no-install", action="store_true", help="only say what is missing")
    args, _ = parser.parse_known_args()
    requirements = wanted()
    missing = [name for name in PACKAGES if installed(name) is None]
    if missing and not args.no_install:
        install([requirements[name] for name in missing])
        missing = [name for name in PACKAGES if installed(name) is None]
    for name in PACKAGES:
        print(f"{name:16} {installed(name) or 'missing':20} wanted: {requirements[name]}")
    here = machine()
    print(json.dumps(here))
    out = Path(os.environ.get("OUT") or ROOT / "runs" / "out" / "gpu")
    out.mkdir(parents=True, exist_ok=True)
    (out / "machine.json").write_text(json.dumps(here, indent=1) + "\n", encoding="utf-8")
    if missing:
        print(f"missing: {', '.join(requirements[name] for name in missing)}; install them, and run this again")
        return 3
    if here.get("device") in (None, "cpu") and not args.tiny:
        print("torch finds no CUDA device here; with --tiny the CPU will do. A torch whose version ends in +cpu")
        print("must be replaced: pip install --force-reinstall torch, from an index that has it with CUDA")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
