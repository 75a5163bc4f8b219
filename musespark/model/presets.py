"""Named configurations: the published models, `muse-spark-nano` as trained and shipped here, and sizes between.

A preset is a `config.json` written as Python; `musespark inspect NAME` prints what it costs. `toy`, `toy-glimmer` and
`toy-llama4` are the smallest models with every part of their architecture, for tests. The output multiplier of the
Muse families is 1/sqrt(hidden_size / 256), the published rule.
"""

from __future__ import annotations

from typing import Any

from musespark.errors import ConfigError
from musespark.model.config import ModelConfig

# The ids our own 16,384-entry tokenizer gives the special tokens (see chat/tokenizer.py).
NANO_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 5}
NANO_IMAGE_TOKEN_ID = 10
PUBLISHED_TOKENS = {"bos_token_id": 200_000, "eos_token_id": 200_001, "pad_token_id": 200_018}

NANO_TEXT = {
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
    "output_multiplier": 1.1547005383792515,
    "moe_hidden_size": 128,
    "moe_intermediate_size": 192,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
}

LLAMA4_TEXT = {
    "bos_token_id": 200_000,
    "eos_token_id": [200_001, 200_007, 200_008],
    "pad_token_id": 200_018,
}
# Early uploads say factor 8 and high_freq_factor 4; these are the numbers that the model was trained with.
SCOUT_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
LLAMA4_VISION = {
    "hidden_size": 1408,
    "image_size": 336,
    "vision_output_dim": 4096,
}

PRESETS: dict[str, dict[str, Any]] = {
    "muse-spark-open": {
        "model_type": "muse_spark",
        "text_config": PUBLISHED_TOKENS,
        "vision_config": {},
        "audio_config": {},
    },
    "muse-spark-400b": {  # 400B in all, 20B a token; 10,485,760 tokens of keys and values take 260 GiB in bf16
        "model_type": "muse_spark",
        "text_config": {
            **PUBLISHED_TOKENS,
            "hidden_size": 5632,
            "intermediate_size": 11_264,
            "num_hidden_layers": 52,
            "num_attention_heads": 88,
            "num_key_value_heads": 8,
            "max_position_embeddings": 10_485_760,
            "output_multiplier": 0.21320071635561041,
            "moe_hidden_size": 2816,
            "moe_intermediate_size": 3456,
        },
        "vision_config": {},
    },
    "muse-spark-mini": {  # 3B in all, 0.6B a token, for a tokenizer of 65,536 entries made as ours is
        "model_type": "muse_spark",
        "image_token_id": NANO_IMAGE_TOKEN_ID,
        "projector_hidden_size": 2048,
        "text_config": {
            **NANO_TOKENS,
            "vocab_size": 65_536,
            "hidden_size": 1536,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
            "output_multiplier": 0.4082482904638631,
            "moe_hidden_size": 768,
            "moe_intermediate_size": 768,
            "num_local_experts": 48,
            "num_experts_per_tok": 4,
        },
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
    },
    "avocado-nano": {"model_type": "muse_spark", "text_config": NANO_TEXT},
    "muse-glimmer-30b": {
        "model_type": "muse_glimmer",
        "text_config": {**PUBLISHED_TOKENS, "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
        "vision_config": {},
    },
    "llama-4-scout": {
        "model_type": "llama4",
        "text_config": {**LLAMA4_TEXT, "max_position_embeddings": 10_485_760, "rope_parameters": SCOUT_ROPE},
        "vision_config": LLAMA4_VISION,
    },
    "llama-4-maverick": {
        "model_type": "llama4",
        "text_config": {
            **LLAMA4_TEXT,
            "max_position_embeddings": 1_048_576,
            "num_local_experts": 128,
            "interleave_moe_layer_step": 2,
            "use_qk_norm": False,
        },
        "vision_config": LLAMA4_VISION,
    },
    "scout-nano": {
        "model_type": "llama4",
        "image_token_index": NANO_IMAGE_TOKEN_ID,
        "text_config": {
            **NANO_TOKENS,
            "vocab_size": 16_384,
            "hidden_size": 192,
            "intermediate_size": 256,
            "intermediate_size_mlp": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 32_768,
            "attention_chunk_size": 1024,
            "rope_parameters": {**SCOUT_ROPE, "original_max_position_embeddings": 1024},
        },
        "vision_config": {
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "image_size": 336,
            "projector_input_dim": 192,
            "projector_output_dim": 192,
            "vision_output_dim": 192,
        },
    },
    "muse-spark-nano": {
        "model_type": "muse_spark",
        "image_token_id": NANO_IMAGE_TOKEN_ID,
        "projector_hidden_size": 192,
        "text_config": NANO_TEXT,
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
    "toy-glimmer": {
        "model_type": "muse_glimmer",
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
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
    },
    "toy-llama4": {
        "model_type": "llama4",
        "image_token_index": NANO_IMAGE_TOKEN_ID,
        "text_config": {
            **NANO_TOKENS,
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 48,
            "intermediate_size_mlp": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 1024,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 128,
            "floor_scale": 64,
            "rope_parameters": {**SCOUT_ROPE, "rope_theta": 10_000.0, "original_max_position_embeddings": 128},
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "projector_input_dim": 48,
            "projector_output_dim": 48,
            "vision_output_dim": 48,
        },
    },
}


def preset(name: str) -> ModelConfig:
    """The named configuration. Raises ConfigError listing the names there are."""
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return ModelConfig.from_dict(PRESETS[name])
