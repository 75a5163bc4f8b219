"""`muse_spark`: latent mixture of experts, gated residuals, an audio tower that is counted and not run.

A text-only model ("Avocado") is one without a `vision_config`. Source: transformers 5.23 `MuseSparkConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

from musespark.errors import ConfigError
from musespark.model.config import AudioConfig, MlpLayerType, ModelConfig, TextConfig
from musespark.model.config_fields import choices, integer, integers, numbers_of, object_of, only, other_eos_token_ids
from musespark.model.families.muse import (
    check_text,
    layer_lists,
    rope_theta,
    text_to_dict,
    vision_from_dict,
    vision_to_dict,
)

TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("post_norm_eps", "sliding_window", "final_logit_softcapping", "qk_scale_factor", "output_multiplier"),
    *("moe_hidden_size", "moe_intermediate_size", "num_local_experts", "num_experts_per_tok"),
    *("routed_scaling_factor", "residual_gate_temperature", "bos_token_id", "eos_token_id", "pad_token_id"),
)
STAGE_FIELDS = ("patch_sizes", "hidden_sizes", "depths")

# transformers builds an audio tower for every muse_spark config. A model without one is written with the smallest that
# transformers accepts: one stage of width 1 with no blocks.
NO_AUDIO_TOWER = {"patch_sizes": [1920], "hidden_sizes": [1], "depths": [0], "num_hidden_layers": 1}


def config_from_dict(data: Mapping[str, Any]) -> ModelConfig:
    only(data, "config.json", tie_word_embeddings=False, projector_hidden_act="gelu")
    text = _text_from_dict(object_of(data, "text_config", "config.json"))
    vision = audio = None
    if data.get("vision_config") is not None:
        vision = vision_from_dict(object_of(data, "vision_config", "config.json"), "muse_spark_vision")
        only(data, "config.json", out_hidden_size=vision.merged_size)
    if data.get("audio_config") is not None:
        audio = _audio_from_dict(object_of(data, "audio_config", "config.json"), text)
    return ModelConfig(
        text=text,
        vision=vision,
        audio=audio,
        projector_hidden_size=integer(data, "projector_hidden_size", "config.json", 4096),
        image_token_id=integer(data, "image_token_id", "config.json", 200_092),
    )


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    text = text_to_dict(config.text, TEXT_FIELDS) | {
        "model_type": "muse_spark_text",
        "hidden_act": "silu",
        "mlp_layer_types": list(config.text.mlp_layer_types),
    }
    audio = NO_AUDIO_TOWER
    if config.audio is not None:
        audio = asdict(config.audio) | {"num_hidden_layers": len(config.audio.depths)}
    return {
        "architectures": ["MuseSparkForConditionalGeneration"],
        "model_type": config.model_type,
        "text_config": text,
        "audio_config": {"model_type": "muse_spark_audio", **audio, "out_hidden_size": config.text.hidden_size},
        **({} if config.vision is None else vision_to_dict(config.vision, "muse_spark_vision")),
        "image_token_id": config.image_token_id,
        "projector_hidden_size": config.projector_hidden_size,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
    }


def _text_from_dict(data: Mapping[str, Any]) -> TextConfig:
    where = "text_config"
    only(data, where, model_type="muse_spark_text", hidden_act="silu", attention_bias=False, tie_word_embeddings=False)
    only(data, where, num_shared_experts=0)
    values = numbers_of(TextConfig, data, where, TEXT_FIELDS)
    values["rope_theta"] = rope_theta(data, where, 500_000.0)
    n = values.get("num_hidden_layers", TextConfig().num_hidden_layers)
    values |= layer_lists(data, where, n)
    values["mlp_layer_types"] = choices(data, "mlp_layer_types", where, ("sparse",) * n, get_args(MlpLayerType))
    config = TextConfig(**values, other_eos_token_ids=other_eos_token_ids(data, where))
    check_text(config)
    return config


def _audio_from_dict(data: Mapping[str, Any], text: TextConfig) -> AudioConfig | None:
    where = "audio_config"
    only(data, where, model_type="muse_spark_audio", hidden_act="gelu", out_hidden_size=text.hidden_size)
    stages: dict[str, Any] = {name: integers(data, name, where, getattr(AudioConfig(), name)) for name in STAGE_FIELDS}
    num_stages = len(stages["depths"])
    if any(len(values) != num_stages for values in stages.values()):
        raise ConfigError(f"{where}: {', '.join(STAGE_FIELDS)} must have one entry per stage each")
    only(data, where, num_hidden_layers=num_stages)
    if stages["depths"] == (0,):  # NO_AUDIO_TOWER
        return None
    return AudioConfig(**stages, **numbers_of(AudioConfig, data, where))
