"""What a run has seen: its rows again, in order, from nothing but the recipe and the saved progress."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from musespark.training.plan import Plan
from musespark.training.progress import Progress
from musespark.training.recipe import Recipe
from musespark.training.rows import PAD_SEGMENT, Row
from musespark.training.sources import open_source


def seen_rows(recipe: Recipe, progress: Progress, *, data: Path, out: Path) -> Iterator[Row]:
    """Every row that the decoder was trained on up to `progress`, with repetitions; its pictures are left out."""
    steps = [*progress.finished] if progress.done(recipe) else [*progress.finished, progress.step]
    names = sorted({name for phase in recipe.phases[: len(steps)] for name in phase.mix})
    sources = {name: open_source(name, recipe, data, out) for name in names}
    sizes = {name: len(source) for name, source in sources.items()}
    plan = Plan(recipe.phases, sizes, rows_per_step=recipe.rows_per_step, seed=recipe.seed)
    for phase, count in enumerate(steps):
        for step in range(count):
            taken = plan.rows(phase, step)
            if recipe.phases[phase].trains == "vision":
                continue  # the decoder saw none of it
            for name, index in taken:
                yield sources[name].row(index, with_images=False)


def documents_of(row: Row) -> Iterator[np.ndarray]:
    """The tokens of each document of a row, padding left out."""
    borders = np.flatnonzero(np.diff(row.segments)) + 1
    for tokens, segments in zip(np.split(row.tokens, borders), np.split(row.segments, borders), strict=True):
        if segments[0] != PAD_SEGMENT:
            yield tokens


def load_progress(out: Path) -> Progress:
    state = torch.load(out / "state.pt", weights_only=True, map_location="cpu")
    return Progress(**state["progress"])
