"""One prompt through transformers' own model class, loaded from the suite's checkpoint."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musespark.chat.images import PATCH_SIZE, PatchedImage
from musespark.conformance.prompts import images_of
from musespark.conformance.suite import Family
from musespark.errors import DataError
from musespark.model.tensor_file import TensorFile

NAMES: dict[Family, str] = {"muse_spark": "MuseSpark", "muse_glimmer": "MuseGlimmer", "llama4": "Llama4"}


def load_model(folder: Path, family: Family) -> Any:
    """The model in float32 with every tensor of the file in its place; only the audio tower, which no case asks, has
    none. Raises DataError if the installed version has no such family, or wants other tensors."""
    import torch
    import transformers

    config_class = getattr(transformers, f"{NAMES[family]}Config", None)
    model_class = getattr(transformers, f"{NAMES[family]}ForConditionalGeneration", None)
    if config_class is None or model_class is None:
        raise DataError(f"transformers {transformers.__version__} has no {NAMES[family]}; 5.23 has")
    config = config_class.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if hasattr(config.text_config, "_experts_implementation"):
        config.text_config._experts_implementation = "eager"  # the grouped one takes only widths of 16 bytes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_class(config).eval()
    model.set_attn_implementation("eager")
    file = TensorFile(folder / "model.safetensors")
    tensors = {name: torch.from_numpy(file.tensor(name).float32().copy()) for name in file.entries}
    loaded = model.load_state_dict(tensors, strict=False)
    lacking = [name for name in loaded.missing_keys if not name.startswith("model.audio_tower.")]
    if lacking or loaded.unexpected_keys:
        raise DataError(f"transformers wants other tensors than {folder} has: {(lacking + loaded.unexpected_keys)[0]}")
    return model


def run(model: Any, family: Family, given: Mapping[str, np.ndarray]) -> np.ndarray:
    """Logits (P, V) float32."""
    import torch

    token_ids = torch.tensor(given["token_ids"].tolist())[None]
    with torch.no_grad():
        logits = model(input_ids=token_ids, **_pixels(images_of(given), family)).logits[0]
    return logits[given["positions"].tolist()].float().numpy()


def _pixels(images: list[PatchedImage], family: Family) -> dict[str, Any]:
    import torch

    if not images:
        return {}
    if family == "llama4":
        return {"pixel_values": torch.stack([torch.from_numpy(_square(image)) for image in images])}
    return {
        "pixel_values": torch.cat([torch.from_numpy(image.patches).repeat(1, 2) for image in images]),
        "image_grid_thw": torch.tensor([[1, *image.grid] for image in images]),
    }


def _square(image: PatchedImage) -> np.ndarray:
    """Patches put together again: (3, height, width)."""
    rows, columns = image.grid
    cut = image.patches.reshape(rows, columns, 3, PATCH_SIZE, PATCH_SIZE).transpose(2, 0, 3, 1, 4)
    return cut.reshape(3, rows * PATCH_SIZE, columns * PATCH_SIZE).copy()
