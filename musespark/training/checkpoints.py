"""The state of a run on disk: everything a resumed run needs to go on bit for bit.

A state is written beside the old one and then renamed over it, so that a run killed while it writes keeps the old one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musespark.errors import CheckpointError
from musespark.training.progress import Progress
from musespark.training.recipe import Recipe

STATE = "state.pt"


def save_state(
    out: Path, recipe: Recipe, network: nn.Module, optimizers: list[torch.optim.Optimizer], progress: Progress
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f"{STATE}.partial"
    state = {
        "config": _described(recipe),
        "network": network.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": progress.to_dict(),
    }
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(out / STATE)


def load_state(
    out: Path, recipe: Recipe, network: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> Progress | None:
    """Restore the run of this folder, or None if it has none. Raises CheckpointError if it can't be used."""
    path = out / STATE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # which ones a broken file raises is not documented, and they share no class
        raise CheckpointError(f"{path} can't be read: {error}") from None
    if not isinstance(state, dict) or not {"config", "network", "optimizers", "progress"} <= set(state):
        raise CheckpointError(f"{path} is not the state of a training run")
    if state["config"] != _described(recipe):
        raise CheckpointError(f"{path} was written for another model configuration; choose another --out")
    network.load_state_dict(state["network"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return Progress(**state["progress"])


def _described(recipe: Recipe) -> str:
    """The model's config.json: it outlives changes of the classes that read it."""
    return json.dumps(recipe.config.to_dict(), sort_keys=True)
