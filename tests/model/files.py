"""Small checkpoints and raw safetensors files, for the tests of this room."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from transformers import (
    Llama4Config,
    Llama4ForConditionalGeneration,
    MuseGlimmerConfig,
    MuseGlimmerForConditionalGeneration,
    MuseSparkConfig,
    MuseSparkForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
)

from musespark.model.checkpoint import save_checkpoint
from musespark.model.config import ModelConfig
from musespark.model.presets import PRESETS, preset
from musespark.model.tensors import expected_tensors

TOY = preset("toy")


def toy_config(**changes: Any) -> ModelConfig:
    """The toy preset with fields of its text_config changed."""
    data = PRESETS["toy"]
    return ModelConfig.from_dict({**data, "text_config": {**data["text_config"], **changes}})


TRANSFORMERS_CLASSES = {
    "muse_spark": (MuseSparkConfig, MuseSparkForConditionalGeneration),
    "muse_glimmer": (MuseGlimmerConfig, MuseGlimmerForConditionalGeneration),
    "llama4": (Llama4Config, Llama4ForConditionalGeneration),
}


def transformers_config(config: ModelConfig) -> PreTrainedConfig:
    """The same model as transformers' configuration class reads it."""
    config_class, _ = TRANSFORMERS_CLASSES[config.model_type]
    return config_class.from_dict(config.to_dict())


def transformers_model(config: ModelConfig) -> PreTrainedModel:
    """The same model in transformers, with weights of its own; its towers are there even if ours are not."""
    _, model_class = TRANSFORMERS_CLASSES[config.model_type]
    return model_class(transformers_config(config))


def random_tensors(config: ModelConfig = TOY, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of `config`, float32, normally distributed."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, np.float32) for name, shape in expected_tensors(config).items()}


def saved_toy(folder: Path, config: ModelConfig = TOY) -> Path:
    """A float32 checkpoint of the toy preset in `folder`."""
    save_checkpoint(folder, config, random_tensors(config), files={"model_card.md": "# toy\n"})
    return folder


def write_stored(
    folder: Path, config: ModelConfig, tensors: Mapping[str, np.ndarray | torch.Tensor], **changes: Any
) -> Path:
    """A checkpoint written by the published library, with any tensors; `changes` are further fields of its config."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), **changes}))
    stored = {
        name: (torch.from_numpy(value) if isinstance(value, np.ndarray) else value).contiguous()
        for name, value in tensors.items()
    }
    safetensors.torch.save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def safetensors_bytes(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file around any header: an object to write as JSON, or bytes to take as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[Any], start: int, end: int) -> dict[str, Any]:
    """One tensor in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
