"""A recipe: everything that decides a training run, as plain data. The files in runs/ each return one.

A run goes through phases; each has a number of steps, a mixture of sources and a learning-rate line from `lr_start` to
`lr_end` (fractions of the peak). Warm-up, stable and decay are three phases of one run. A phase may train the vision
tower alone: it looks at many times more pictures a second than the whole network does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from musespark.errors import ConfigError, DataError
from musespark.model.config import ModelConfig

LARGEST_VOCABULARY = 1 << 16


@dataclass(frozen=True, slots=True)
class TextData:
    """Plain documents of one domain: shards below the data folder, and how many of their tokens to use."""

    shards: tuple[str, ...]
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ChatData:
    """Conversations built by a function, by its name in `training/sources.py`."""

    builder: str
    version: int = 1  # raise it when the builder changes, and the data is made anew


@dataclass(frozen=True, slots=True)
class ChatFile:
    """Conversations of a JSONL file, see `training/chat_rows.py`."""

    path: Path


@dataclass(frozen=True, slots=True)
class GeneratedData:
    """How many samples of each generator in `evals/generated/catalogue.py`, drawn from training seeds."""

    counts: Mapping[str, int]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Phase:
    name: str
    steps: int
    mix: Mapping[str, float]  # source -> share of the rows; shares are normalised
    lr_start: float = 1.0
    lr_end: float = 1.0
    trains: Literal["all", "vision"] = "all"  # "vision": the tower by `name_loss`; the decoder isn't run


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    config: ModelConfig
    tokenizer: Path
    sources: Mapping[str, TextData | ChatData | ChatFile | GeneratedData]
    phases: tuple[Phase, ...]
    sequence_length: int = 512
    rows_per_step: int = 16
    rows_per_forward: int = 16  # rows in memory at once; gradients of several forwards are added
    warmup_steps: int = 20
    matrix_lr: float = 8e-3
    embedding_lr: float = 4e-3
    scalar_lr: float = 3e-3
    router_lr: float = 3e-4
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    router_bias_rate: float = 1e-2  # 1e-3 is for runs of many thousand steps
    router_z_loss: float = 1e-4
    vision_lr_scale: float = 0.25  # a few dozen pictures a step: at the full rate the tower is shaken, not taught
    image_name_loss: float = 0.1  # weight of `name_loss` where the decoder learns too; it reaches the tower only
    seed: int = 1
    evaluation_sets: str | None = None  # folder below the data: what shares 13 words with them is left out
    time_limit_s: float | None = None  # phases are cut so that the run ends in time
    save_every_s: float = 300.0
    precision: str = "bfloat16"
    compile: bool = False
    start: Path | None = None  # a checkpoint folder whose weights are the first ones; None: random ones
    lora_rank: int | None = None  # learn low-rank adapters of the text matrices only, see `training/adapters.py`

    def __post_init__(self) -> None:
        if not self.phases or any(phase.steps < 1 for phase in self.phases):
            raise ConfigError("a recipe needs at least one phase, and every phase at least one step")
        if self.rows_per_step % self.rows_per_forward:
            raise ConfigError(
                f"rows_per_step {self.rows_per_step} must be a multiple of rows_per_forward {self.rows_per_forward}"
            )
        if self.warmup_steps < 1:
            raise ConfigError(f"warmup_steps is {self.warmup_steps}; it must be at least 1")
        if self.config.text.vocab_size > LARGEST_VOCABULARY:
            raise ConfigError(
                f"the vocabulary of {self.config.text.vocab_size:,} is too large: tokenised data holds 16-bit ids, "
                f"so at most {LARGEST_VOCABULARY:,} can be trained"
            )
        if "dense" in self.config.text.mlp_layer_types:
            raise ConfigError("the training decoder has no dense layers; use mlp_layer_types of 'sparse' only")
        for phase in self.phases:
            for name in phase.mix:
                if name not in self.sources:
                    raise ConfigError(
                        f"phase {phase.name!r} mixes {name!r}; there are {', '.join(sorted(self.sources))}"
                    )


def load_recipe(path: Path) -> Recipe:
    """Run a recipe file (Python, trusted like any code of this repository) and take what its `recipe()` returns."""
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise DataError(
            f"{path} is not a recipe: give a Python file with a function recipe() -> Recipe, such as runs/nano.py"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe = module.recipe()
    if not isinstance(recipe, Recipe):
        raise DataError(f"{path}: recipe() must return a Recipe, it returned {type(recipe).__name__}")
    return recipe
