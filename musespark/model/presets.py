"""Named configurations: `muse-spark-open` as published, `muse-spark-nano` as trained and shipped here.

A preset is a `config.json` written as Python; `musespark inspect NAME` prints what it costs. `toy` is the smallest
model with every part of the architecture, for tests.
"""

from __future__ import annotations

from typing import Any

from musespark.errors import ConfigError
from musespark.model.config import ModelConfig

# The ids our own 16,384-entry tokenizer gives the special tokens (see chat/tokenizer.py).
NANO_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 5}
NANO_IMAGE_TOKEN_ID = 10

PRESETS: dict[str, dict[str, Any]] = {
    "muse-spark-open": {
        "model_type": "muse_spark",
        "text_config": {"pad_token_id": 200_018},
        "vision_config": {},
        "audio_config": {},
    },
    "muse-spark-nano": {
        "model_type": "muse_spark",
        "image_token_id": NANO_IMAGE_TOKEN_ID,
        "projector_hidden_size": 192,
        "text_config": {
            **NANO_TOKENS,
            "vocab_size": 16_384,
            "hidden_size": 192,
            "intermediate_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "sliding_window": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "output_multiplier": 1.1547005383792515,  # 1/sqrt(hidden_size / 256), the published rule
            "moe_hidden_size": 128,
            "moe_intermediate_size": 192,
            "num_local_experts": 16,
            "num_experts_per_tok": 2,
        },
        "vision_config": {
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
    },
    "toy": {
        "model_type": "muse_spark",
        "image_token_id": NANO_IMAGE_TOKEN_ID,
        "projector_hidden_size": 48,
        "text_config": {
            **NANO_TOKENS,
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 1024,
            "sliding_window": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "output_multiplier": 1.0,
            "moe_hidden_size": 32,
            "moe_intermediate_size": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
    },
}


def preset(name: str) -> ModelConfig:
    """The named configuration. Raises ConfigError listing the names there are."""
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return ModelConfig.from_dict(PRESETS[name])
