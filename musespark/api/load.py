"""From a checkpoint folder to a provider that answers: the one place that joins model, engine and provider."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from musespark.api.memory_plan import MemoryPlan, check_available, plan_memory
from musespark.api.runners import plan_runner
from musespark.api.settings import MAX_BATCH_TOKENS, MODEL_NAME, Settings
from musespark.chat.formats import ChatFormat, open_format, open_tokenizer
from musespark.chat.tokenizer import Tokenizer
from musespark.engine.engine import Engine
from musespark.engine.service import EngineService
from musespark.errors import CheckpointError, ConfigError
from musespark.model.checkpoint import BUNDLED, Checkpoint, open_checkpoint
from musespark.model.config import ModelType
from musespark.model.weight_memory import largest_tensor_bytes
from musespark.model.weight_reader import Progress
from musespark.providers.base import ModelInfo
from musespark.providers.local import LocalProvider


@dataclass(frozen=True, slots=True)
class LoadedModel:
    provider: LocalProvider
    service: EngineService
    model_type: ModelType
    memory: MemoryPlan | None = None  # None: it did not come from a checkpoint

    async def close(self, drain_s: float) -> None:
        """Let running requests end within `drain_s`, fail the rest, free the model."""
        await self.service.close(drain_s)
        self.provider.close()


def load_model(settings: Settings, progress: Progress | None = None) -> LoadedModel:
    """Open the checkpoint, plan its memory, start the engine. Blocks, and tells `progress` how much of it is read.

    Raises CheckpointError, ConfigError, and NotEnoughMemory before the weights are read.
    """
    folder = (settings.checkpoint or BUNDLED).resolve()
    checkpoint = open_checkpoint(folder, check_while_reading=True)  # the runner reads all of it
    tokenizer = open_tokenizer(folder)
    num_rows = checkpoint.config.text.vocab_size
    if tokenizer.vocab_size > num_rows:  # fewer is common: embeddings are padded
        raise CheckpointError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size:,} tokens, but vocab_size in config.json is "
            f"{num_rows:,}; these files belong to different models"
        )
    chat = open_format(folder, checkpoint.config.model_type, tokenizer)
    try:
        return _start(settings, folder, checkpoint, tokenizer, chat, progress)
    except BaseException:
        chat.close()
        raise


def _start(
    settings: Settings,
    folder: Path,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    progress: Progress | None,
) -> LoadedModel:
    plan = plan_runner(settings, checkpoint)
    memory = plan_memory(
        settings,
        checkpoint.config,
        plan.page_bytes,
        weights=plan.weight_bytes,
        largest_tensor=largest_tensor_bytes(checkpoint),
    )
    check_available(memory, settings)
    model = model_info(settings, folder, plan.precision)
    runner = plan.make(memory.num_full_pages, memory.num_sliding_pages, progress)
    unsayable = tokenizer.special_ids - chat.answer_token_ids
    engine = Engine(
        runner,
        max_batch_tokens=MAX_BATCH_TOKENS,
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        max_draft_tokens=settings.draft_tokens,
        max_pixel_bytes=memory.max_pixel_bytes,
        image_cache_bytes=memory.features,
        decode_latency_target_s=settings.decode_latency_target_ms / 1000,
        # Nothing may come out that text can't show: image rows, reserved ids, rows of the head beyond the tokenizer.
        suppressed_token_ids={*unsayable, *range(tokenizer.vocab_size, checkpoint.config.text.vocab_size)},
    )
    check_weights(engine, tokenizer.special("<|begin_of_text|>"), folder)
    service = EngineService(engine)
    reads_images = checkpoint.config.image_tower is not None
    provider = LocalProvider(
        service,
        tokenizer,
        chat,
        checkpoint.generation,
        model,
        reads_images=reads_images,
        max_image_pixels=settings.max_image_pixels,
    )
    return LoadedModel(provider, service, checkpoint.config.model_type, memory)


def check_weights(engine: Engine, token: int, folder: Path) -> None:
    """Compute one token, and close the engine if that gives no numbers: no request would be answered.

    Raises CheckpointError. Weights that only other tokens or images use may still be NaN; those end their request.
    """
    if not np.isfinite(engine.probe(token)).all():
        engine.close()
        raise CheckpointError(f"the model in {folder} computes NaN or infinity; its weights are damaged")


def model_info(settings: Settings, folder: Path, precision: str) -> ModelInfo:
    """The model's public name and fingerprint. Raises ConfigError for a folder whose name is no model name."""
    name = settings.model_name or folder.name
    if not re.fullmatch(MODEL_NAME, name):
        raise ConfigError(f"the folder name {name!r} can't be a model name; set MUSESPARK_MODEL_NAME")
    digest = hashlib.sha256(f"{metadata.version('musespark')} {precision}".encode())
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".jinja", ".model"):
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    created = int((folder / "config.json").stat().st_mtime)
    return ModelInfo(name, created, "musespark", f"fp_{digest.hexdigest()[:12]}")
