"""From a run to a checkpoint folder: bfloat16 in Hugging Face layout."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from torch import nn

from musespark.chat.images import CELL_SIZE, MAX_IMAGE_TOKENS, PATCH_SIZE
from musespark.chat.tokenizer import Tokenizer
from musespark.model.checkpoint import save_checkpoint
from musespark.model.generation import GenerationDefaults
from musespark.training.conversations import NANO_SETTINGS
from musespark.training.recipe import Recipe

# What transformers' image processor reads; the arithmetic is that of chat/images.py.
PREPROCESSOR = {
    "image_processor_type": "MuseGlimmerImageProcessor",
    "patch_size": PATCH_SIZE,
    "merge_size": CELL_SIZE // PATCH_SIZE,
    "temporal_patch_size": 2,
    "max_image_tokens": MAX_IMAGE_TOKENS,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def export(network: nn.Module, recipe: Recipe, target: Path, *, card: str | None = None) -> None:
    """Write the checkpoint folder `target` in bfloat16, with everything that serving needs beside the weights."""
    tokenizer = Tokenizer.from_file(recipe.tokenizer)
    ends = (tokenizer.special("<|end_of_text|>"), tokenizer.special("<|eot|>"))
    files: dict[str, bytes | str | Path] = {
        "tokenizer.json": recipe.tokenizer.read_bytes(),
        "chat_settings.json": _json(asdict(NANO_SETTINGS)),
        "preprocessor_config.json": _json(PREPROCESSOR),
    }
    if card is not None:
        files["model_card.md"] = card
    save_checkpoint(
        target,
        recipe.config,
        network.state_dict(),
        # A model this small loses the thread at temperature 1.
        generation=GenerationDefaults(ends, temperature=0.7, top_p=0.9),
        files=files,
        dtype="BF16",
    )


def _json(data: object) -> str:
    return json.dumps(data, indent=2) + "\n"
