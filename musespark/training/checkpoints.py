"""The state of a run on disk: everything a resumed run needs to go on bit for bit.

A state is written beside the old one and then renamed over it, so that a run killed while it writes keeps the old one.
"""

from __future__ import annotations

import dataclasses
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
    out: Path, recipe: Recipe, modules: nn.Module, optimizers: list[torch.optim.Optimizer], progress: Progress
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f"{STATE}.partial"
    state = {
        "recipe": described(recipe),
        "modules": modules.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": progress.to_dict(),
    }
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(out / STATE)


def load_state(
    out: Path, recipe: Recipe, modules: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> Progress | None:
    """Restore the run of this folder, or None if it has none.

    Raises CheckpointError if it can't be used, or was made by another recipe: which fields differ is in the message.
    """
    path = out / STATE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # which ones a broken file raises is not documented, and they share no class
        raise CheckpointError(f"{path} can't be read: {error}") from None
    if not isinstance(state, dict) or not {"recipe", "modules", "optimizers", "progress"} <= set(state):
        raise CheckpointError(f"{path} is not the state of a training run")
    changes = differences(state["recipe"], described(recipe))
    if changes:
        raise CheckpointError(
            f"{path} was made by another recipe: {'; '.join(changes)}. Take the changes back, or choose another --out"
        )
    modules.load_state_dict(state["modules"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return Progress(**state["progress"])


def described(recipe: Recipe) -> dict[str, str]:
    """Every field that the run's numbers follow from, as text; a sources' or config's class may change, its text not.

    How often a state is saved and how long a run may take don't change what a step computes.
    """
    without = {"save_every_s", "time_limit_s", "config", "tokenizer", "start"}
    fields = {field.name: repr(getattr(recipe, field.name)) for field in dataclasses.fields(recipe)}
    config = {f"config {name}": json.dumps(value, sort_keys=True) for name, value in recipe.config.to_dict().items()}
    return {name: value for name, value in fields.items() if name not in without} | config


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """ "name: old -> new" for each field that is not the same, long values cut to where they differ."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name, "nothing"), now.get(name, "nothing")
        if old != new:
            same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
            start = max(0, same - 20)
            found.append(f"{name}: {_cut(old, start)} -> {_cut(new, start)}")
    return found


def _cut(text: str, start: int, size: int = 80) -> str:
    return ("…" if start else "") + text[start : start + size] + ("…" if len(text) > start + size else "")
