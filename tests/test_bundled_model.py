"""The model in the box, as it lies in the repository: small, whole, and it ends its answers by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from musespark.model.checkpoint import BUNDLED, open_checkpoint
from musespark.model.presets import preset

MUSESPARK = Path(sys.executable).with_name("musespark")


def test_it_is_the_preset_quantised_and_at_most_40_megabytes() -> None:
    checkpoint = open_checkpoint(BUNDLED)
    assert checkpoint.config == preset("muse-spark-nano")
    assert checkpoint.quantization is not None
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 40_000_000


def test_its_card_names_the_data_their_licences_and_what_it_cannot_do() -> None:
    card = (BUNDLED / "model_card.md").read_text(encoding="utf-8")
    for heading in ("## Training", "## Data", "## Scores", "## What it can't do"):
        assert heading in card
    assert json.loads((BUNDLED / "chat_settings.json").read_text())["default_reasoning_effort"] == "low"


@pytest.mark.parametrize("question", ["Hello!", "Who are you?", "Thank you."])
def test_it_answers_in_the_chat_format_and_ends_by_itself(question: str) -> None:
    done = subprocess.run(
        [MUSESPARK, "chat", question, "--temperature", "0", "--max-tokens", "100"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip()
    assert "<|" not in done.stdout
    assert "cut" not in done.stderr
