"""Fine-tuning on a user's conversations: a recipe of one phase that starts from a checkpoint.

Everything else is the training loop as it is: packing, pictures, the schedule, resuming. The result is a checkpoint
folder that serves at once, with the tokenizer and the settings of the one that it came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from musespark.errors import ConfigError
from musespark.model.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from musespark.training.loop import train
from musespark.training.recipe import ChatFile, Phase, Recipe
from musespark.training.sources import open_source

KEPT_FILES = ("tokenizer.json", "chat_settings.json", "preprocessor_config.json")
SOURCE = "conversations"
LEAST_STEPS = 40  # a handful of answers is known by heart then, see docs/log.md


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """epochs None: three, or as many as make LEAST_STEPS. lora_rank None: all weights learn.

    The rate falls from `lr` to a tenth of it, where 1 is that of pretraining. None is 4 with adapters and 0.3 without:
    what took the bundled model from 4.0 to 0.1 nats on twenty questions in 30 steps, see docs/log.md.
    """

    epochs: float | None = None
    lora_rank: int | None = 8
    lr: float | None = None
    sequence_length: int = 1024
    rows_per_step: int = 2
    seed: int = 1

    def __post_init__(self) -> None:
        if self.epochs is not None and not 0 < self.epochs <= 1000:
            raise ConfigError(f"epochs is {self.epochs}; it must be over 0 and at most 1,000")
        if self.lora_rank is not None and not 1 <= self.lora_rank <= 1024:
            raise ConfigError(f"lora_rank is {self.lora_rank}; it must be from 1 to 1,024")
        if not 0 < self.rate <= 10:
            raise ConfigError(f"lr is {self.lr}; it must be over 0 and at most 10 times the rate of pretraining")
        if not 64 <= self.sequence_length <= 1 << 20:
            raise ConfigError(f"sequence_length is {self.sequence_length:,}; it must be from 64 to 1,048,576")
        if self.rows_per_step < 1:
            raise ConfigError(f"rows_per_step is {self.rows_per_step}; it must be at least 1")

    @property
    def rate(self) -> float:
        if self.lr is not None:
            return self.lr
        return 0.3 if self.lora_rank is None else 4.0


def finetune(start: Path, data: Path, target: Path, options: FinetuneOptions, *, resume: bool = False) -> Recipe:
    """Train on the conversations of `data` from the checkpoint `start`, and write the checkpoint folder `target`.

    The state of the run is in `target` with `.run` behind its name. Returns the recipe that was run. Raises DataError
    for bad rows, ConfigError for a checkpoint that can't be trained or a `target` that is there already.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already; give another --out")
    checkpoint = open_checkpoint(start)
    recipe = finetune_recipe(checkpoint, data, target.with_name(f"{target.name}.run"), options)
    network = train(recipe, data=data.parent, out=target.with_name(f"{target.name}.run"), resume=resume)
    files = {name: (start / name).read_bytes() for name in KEPT_FILES if (start / name).exists()}
    save_checkpoint(
        target, recipe.config, network.state_dict(), generation=checkpoint.generation, files=files, dtype="BF16"
    )
    return recipe


def finetune_recipe(checkpoint: Checkpoint, data: Path, out: Path, options: FinetuneOptions) -> Recipe:
    """The recipe; its number of steps follows from how many rows the conversations fill."""
    if checkpoint.config.model_type != "muse_spark":
        raise ConfigError(
            f"{checkpoint.folder} is a {checkpoint.config.model_type}; only muse_spark can be trained here"
        )
    recipe = Recipe(
        name=checkpoint.folder.name,
        config=checkpoint.config,
        tokenizer=checkpoint.folder / "tokenizer.json",
        sources={SOURCE: ChatFile(data)},
        phases=(Phase("finetune", 1, {SOURCE: 1}, options.rate, options.rate / 10),),
        sequence_length=options.sequence_length,
        rows_per_step=options.rows_per_step,
        rows_per_forward=1,
        warmup_steps=1,
        image_name_loss=0.0,
        seed=options.seed,
        start=checkpoint.folder,
        lora_rank=options.lora_rank,
    )
    rows = len(open_source(SOURCE, recipe, data.parent, out))
    if options.epochs is None:
        steps = max(LEAST_STEPS, math.ceil(3 * rows / options.rows_per_step))
    else:
        steps = math.ceil(options.epochs * rows / options.rows_per_step)
    phase = replace(recipe.phases[0], steps=steps)
    return replace(recipe, phases=(phase,), warmup_steps=max(1, steps // 20))
