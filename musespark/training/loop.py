"""The training loop: read a step's rows, run forward and backward, update, save; from a recipe to a trained network.

`train` is what `musespark train RECIPE` calls. A run can be killed at any moment: it goes on from its last saved
state exactly as it would have gone on anyway (a test compares the bits).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from musespark.errors import ConfigError, MuseSparkError
from musespark.model.network import MuseSpark, load_network
from musespark.training.adapters import Adapters
from musespark.training.batch import Batch, make_batches
from musespark.training.checkpoints import load_state, save_state
from musespark.training.forward import Decoder, embed
from musespark.training.name_loss import contrast, spread
from musespark.training.optimizer import build_optimizers
from musespark.training.plan import Plan
from musespark.training.progress import Progress
from musespark.training.recipe import Recipe
from musespark.training.report import Reporter
from musespark.training.rows import Row, Source
from musespark.training.sources import open_source
from musespark.training.variations import vary

FLOAT32_NAMES = ("mlp.gate.weight", "embed_tokens", "vision_")  # the router, and what is cast where it is used


class TrainingDiverged(MuseSparkError):
    """The loss is no longer a number; the last saved state is from before."""

    code = "training_diverged"


def train(recipe: Recipe, *, data: Path, out: Path, resume: bool = False) -> MuseSpark:
    """Run a recipe to its end and return the network; `export` writes it as a checkpoint.

    data: the data pack. out: the folder of the run (state, metrics, tokenised data). resume: go on from the state in
    `out`; without it a state that is there is started over.
    Raises DataError for bad rows, TrainingDiverged when the loss is not finite, CheckpointError for an unusable state.
    """
    trainer = Trainer(recipe, data=data, out=out)
    if resume:
        trainer.restore()
    trainer.run()
    if trainer.adapters is not None:
        trainer.adapters.merge_into(trainer.network)
    return trainer.network


def first_network(recipe: Recipe) -> MuseSpark:
    """The weights that training starts from. Raises CheckpointError for a bad folder, ConfigError for another shape."""
    if recipe.start is None:
        network = MuseSpark(recipe.config)
        network.init_weights(recipe.seed)
        return network
    loaded = load_network(recipe.start)
    if not isinstance(loaded, MuseSpark) or loaded.config != recipe.config:
        raise ConfigError(f"{recipe.start} is another model than the recipe's {recipe.config.model_type}")
    return loaded.train()


class Trainer:
    def __init__(self, recipe: Recipe, *, data: Path, out: Path) -> None:
        self.recipe = recipe
        self.data = data
        self.out = out
        self.network = first_network(recipe)
        self.adapters = None if recipe.lora_rank is None else Adapters(self.network, recipe.lora_rank, recipe.seed)
        self.learned: nn.Module = self.network if self.adapters is None else self.adapters
        self.optimizers = build_optimizers(
            self.learned,
            matrix_lr=recipe.matrix_lr,
            embedding_lr=recipe.embedding_lr,
            scalar_lr=recipe.scalar_lr,
            router_lr=recipe.router_lr,
            vision_lr_scale=recipe.vision_lr_scale,
            weight_decay=recipe.weight_decay,
        )
        self.decoder = Decoder(recipe.config.text, compile=recipe.compile)
        self.progress = Progress.begin(recipe)
        self.sources: dict[str, Source] = {}
        self.biases = {
            int(name.split(".layers.")[1].split(".")[0]): buffer
            for name, buffer in self.network.named_buffers()
            if name.endswith("e_score_correction_bias")
        }

    def restore(self) -> None:
        progress = load_state(self.out, self.recipe, self._modules(), self.optimizers)
        if progress is not None:
            self.progress = progress

    def run(self) -> None:
        plan = self._open_phase(None)
        saved_at = time.monotonic()
        with Reporter(self.recipe, self.out) as reporter:
            while not self.progress.done(self.recipe):
                started = time.monotonic()
                metrics = self.step(plan)
                seconds = time.monotonic() - started
                reporter.step(self.progress, metrics, seconds)
                changed = self.progress.advance(self.recipe, seconds=seconds)
                if changed and not self.progress.done(self.recipe):
                    plan = self._open_phase(plan)
                if changed or time.monotonic() - saved_at >= self.recipe.save_every_s:
                    self.save()
                    saved_at = time.monotonic()

    def save(self) -> None:
        save_state(self.out, self.recipe, self._modules(), self.optimizers, self.progress)

    def _modules(self) -> nn.ModuleDict:
        """What a state holds: the network, whose router biases move in any case, and the adapters if there are any."""
        adapters = {} if self.adapters is None else {"adapters": self.adapters}
        return nn.ModuleDict({"network": self.network, **adapters})

    def step(self, plan: Plan) -> dict[str, Any]:
        """One update. Returns what the metrics file gets."""
        recipe, progress = self.recipe, self.progress
        batches, num_targets = make_batches(self._rows(plan), recipe.rows_per_forward)
        if recipe.phases[progress.phase].trains == "vision":
            metrics, loads = self._backward_of_vision(batches)
        else:
            metrics, loads = self._backward(batches, num_targets)
            progress.tokens += sum(batch.num_tokens for batch in batches)
            progress.targets += num_targets
        norm = float(torch.nn.utils.clip_grad_norm_(self.learned.parameters(), recipe.clip_norm))
        if not math.isfinite(metrics["loss"]) or not math.isfinite(norm):
            raise TrainingDiverged(
                f"the loss is {metrics['loss']} and the gradient norm {norm} at step {progress.total_steps:,}; "
                f"the last saved state in {self.out} is from before; lower the learning rates of the recipe"
            )
        scale = progress.lr_scale(recipe)
        self._update(scale, loads)
        return {**metrics, "grad_norm": norm, "lr_scale": scale}

    def _rows(self, plan: Plan) -> list[Row]:
        """The rows of the next step; each time that a picture is shown it looks a little different."""
        progress = self.progress
        rng = np.random.default_rng((self.recipe.seed, progress.phase, progress.step))
        rows = [self.sources[name].row(index) for name, index in plan.rows(progress.phase, progress.step)]
        return [replace(row, images=tuple(vary(image, rng) for image in row.images)) for row in rows]

    def _backward(self, batches: Sequence[Batch], num_targets: int) -> tuple[dict[str, float], list[Tensor]]:
        """Gradients of the whole network; what the metrics file gets, and each layer's tokens per expert."""
        recipe = self.recipe
        loads = [torch.zeros(recipe.config.text.num_local_experts, dtype=torch.int64) for _ in self.biases]
        total = 0.0
        for batch in batches:
            loss, extra, batch_loads = self._forward(batch)
            (loss / num_targets + extra * len(batch.token_ids) / recipe.rows_per_step).backward()
            total += loss.item()
            loads = [a + b for a, b in zip(loads, batch_loads, strict=True)]
        fair = recipe.rows_per_step * recipe.sequence_length * recipe.config.text.num_experts_per_tok
        least = [float(load.min()) * len(load) / fair for load in loads]
        return {"loss": total / num_targets, "least_expert_load": min(least)}, loads

    def _backward_of_vision(self, batches: Sequence[Batch]) -> tuple[dict[str, float], list[Tensor]]:
        """Gradients of the vision tower alone, and no loads: the decoder doesn't run."""
        total = 0.0
        for batch in batches:
            loss = self._name_loss(self._encode(batch), batch) / len(batches)
            loss.backward()
            total += loss.item()
        return {"loss": total, "pictures": sum(len(batch.images) for batch in batches)}, []

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Summed loss in nats, what is added to the mean loss, and expert loads of one batch."""
        dtype = getattr(torch, self.recipe.precision)
        weights = self._cast(dtype)
        text = self.recipe.config.text
        x = embed(text, weights, batch.token_ids)
        extra = torch.zeros(())
        if batch.images:
            features = self._encode(batch)
            x = x.flatten(0, 1).index_put((batch.image_rows,), torch.cat(features).float()).view_as(x)
            extra = self.recipe.image_name_loss * self._name_loss(features, batch)
        hidden, routing = self.decoder.hidden(weights, self.biases, x.to(dtype), batch.segments)
        learned = hidden.flatten(0, 1).index_select(0, batch.target_rows)
        extra = extra + self.recipe.router_z_loss * routing.z_loss
        return self.decoder.loss(weights, learned, batch.targets), extra, routing.loads

    def _encode(self, batch: Batch) -> list[Tensor]:
        """The features (cells, D) of each image."""
        dtype = getattr(torch, self.recipe.precision)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return self.network.encode_images(batch.images)

    def _name_loss(self, features: list[Tensor], batch: Batch) -> Tensor:
        """See `name_loss`; the embeddings are used and not changed."""
        pooled = torch.stack([cells.mean(0) for cells in features]).float()
        with torch.no_grad():
            words = embed(self.recipe.config.text, dict(self.network.named_parameters()), batch.name_tokens)
        return contrast(pooled, words, batch.named_images, batch.name_tokens) + spread(pooled)

    def _cast(self, dtype: torch.dtype) -> Mapping[str, Tensor]:
        adapted = (lambda name, p: p) if self.adapters is None else self.adapters.apply_to
        return {
            name: p if p.ndim < 2 or any(part in name for part in FLOAT32_NAMES) else adapted(name, p).to(dtype)
            for name, p in self.network.named_parameters()
        }

    @torch.no_grad()
    def _update(self, scale: float, loads: list[Tensor]) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        # Balance without a loss: an expert that got too little is chosen more readily (arXiv 2408.15664).
        for bias, load in zip(self.biases.values(), loads, strict=bool(loads)):
            error = load.float().mean() - load.float()
            bias += self.recipe.router_bias_rate * scale * error.sign()

    def _open_phase(self, plan: Plan | None) -> Plan:
        """Open the sources that the current phase mixes, and a plan that knows what was read before."""
        recipe, progress = self.recipe, self.progress
        names = set(self.sources)
        for phase in recipe.phases[: progress.phase + 1]:
            names |= set(phase.mix)
        for name in sorted(names - set(self.sources)):
            self.sources[name] = open_source(name, recipe, self.data, self.out)
        plan = Plan(
            recipe.phases,
            {name: len(source) for name, source in self.sources.items()},
            rows_per_step=recipe.rows_per_step,
            seed=recipe.seed,
        )
        for index, steps in enumerate(progress.finished):
            plan.skip(index, steps)
        if not progress.done(recipe):
            plan.skip(progress.phase, progress.step)
        return plan
