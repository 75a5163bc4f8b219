"""The official SDK, the current major version and the one before, against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api import sdk_conversation
from tests.api.world import World

# Two majors can't share an environment; the older one lives in a folder of its own, beside what both need.
OLDER = Path(__file__).parents[2] / "build" / "openai2"


def install_older() -> None:
    """Once per clone. Without dependencies: all but `distro` come with the current version and with httpx."""
    if not (OLDER / "openai").is_dir():
        packages = ["openai>=2,<3", "distro"]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(OLDER), *packages]
        subprocess.run(command, check=True, timeout=300)


@pytest.fixture(scope="module", params=["2", "3"])
def outcomes(request: pytest.FixtureRequest, shared_world: World) -> dict[str, str]:
    """What the whole conversation gave under one major version of the SDK."""
    environment = dict(os.environ)
    if request.param == "2":
        install_older()
        environment["PYTHONPATH"] = str(OLDER)
    command = [sys.executable, sdk_conversation.__file__, f"{shared_world.url}/v1", shared_world.key]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    results: dict[str, str] = json.loads(run.stdout)
    assert results["version"].startswith(f"{request.param}.")
    return results


@pytest.mark.parametrize("scenario", sdk_conversation.SCENARIOS)
def test_the_sdk_holds_a_conversation(world: World, outcomes: dict[str, str], scenario: str) -> None:
    assert outcomes[scenario] == "ok", outcomes[scenario]
