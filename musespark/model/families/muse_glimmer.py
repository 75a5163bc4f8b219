"""`muse_glimmer`: the dense sibling of `muse_spark`.

No experts, no residual gates, no norm of attention outputs, no audio. Its post-norms have weights, its image tower
samples the position table in plain order, and its file says `hidden_activation`.
Source: transformers 5.23 `MuseGlimmerConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musespark.errors import ConfigError
from musespark.model.config import ModelConfig, TextConfig
from musespark.model.config_fields import integer, numbers_of, object_of, only, other_eos_token_ids, rope_parameters
from musespark.model.families.muse import (
    check_text,
    layer_lists,
    rope_theta,
    text_to_dict,
    vision_from_dict,
    vision_to_dict,
)

# The decoder of Muse-Glimmer-30B, which is also what transformers' class has by default; sizes of experts are 0.
DEFAULTS: dict[str, Any] = {
    "hidden_size": 6656,
    "intermediate_size": 19968,
    "num_hidden_layers": 52,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "qk_scale_factor": 3.87,
    "output_multiplier": 0.19611613513818404,
    **dict.fromkeys(("moe_hidden_size", "moe_intermediate_size", "num_local_experts", "num_experts_per_tok"), 0),
    "residual_gate_temperature": 0.0,
}
TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("post_norm_eps", "sliding_window", "final_logit_softcapping", "qk_scale_factor", "output_multiplier"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)


def config_from_dict(data: Mapping[str, Any]) -> ModelConfig:
    only(data, "config.json", tie_word_embeddings=False, projector_hidden_act="gelu")
    text = _text_from_dict(object_of(data, "text_config", "config.json"))
    vision = None
    if data.get("vision_config") is not None:
        tower = object_of(data, "vision_config", "config.json")
        vision = vision_from_dict(tower, "muse_glimmer_vision", pos_emb_order="ij")
        only(data, "config.json", out_hidden_size=vision.merged_size)
    return ModelConfig(
        text=text,
        vision=vision,
        projector_hidden_size=integer(data, "projector_hidden_size", "config.json", 4096),
        image_token_id=integer(data, "image_token_id", "config.json", 200_092),
        model_type="muse_glimmer",
    )


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    text = text_to_dict(config.text, TEXT_FIELDS)
    return {
        "architectures": ["MuseGlimmerForConditionalGeneration"],
        "model_type": config.model_type,
        "text_config": text | {"model_type": "muse_glimmer_text", "hidden_activation": "silu"},
        **({} if config.vision is None else vision_to_dict(config.vision, "muse_glimmer_vision")),
        "image_token_id": config.image_token_id,
        "projector_hidden_size": config.projector_hidden_size,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
    }


def _text_from_dict(data: Mapping[str, Any]) -> TextConfig:
    where = "text_config"
    only(data, where, model_type="muse_glimmer_text", hidden_activation="silu", hidden_act="silu")
    only(data, where, attention_bias=False, tie_word_embeddings=False)
    if rope_parameters(data, where).get("rope_theta") is None:
        # transformers' class would silently take 10,000, with which the released weights speak nonsense.
        raise ConfigError(
            f"{where}: rope_parameters has no rope_theta; the released model has 500000, "
            'write "rope_parameters": {"rope_type": "default", "rope_theta": 500000}'
        )
    values = DEFAULTS | numbers_of(TextConfig, data, where, TEXT_FIELDS)
    n = values["num_hidden_layers"]
    values |= layer_lists(data, where, n)
    values |= {"rope_theta": rope_theta(data, where, None), "mlp_layer_types": ("dense",) * n}
    config = TextConfig(**values, other_eos_token_ids=other_eos_token_ids(data, where))
    check_text(config)
    return config
