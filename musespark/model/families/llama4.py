"""`llama4`, Scout and Maverick: chunked attention, experts of full width beside a shared one, an image tower for tiles.

Published files come in two ages: rotary settings as `rope_theta` and `rope_scaling`, or together as `rope_parameters`.
`no_rope_layers` means the contrary of its name: 1 marks a layer with rotary embedding. Source: transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

from musespark.errors import ConfigError
from musespark.model.config import LayerType, ModelConfig, RopeScaling, TextConfig, TileVisionConfig
from musespark.model.config_fields import (
    choices,
    flags,
    integer,
    number,
    numbers_of,
    object_of,
    only,
    other_eos_token_ids,
    rope_parameters,
    switch,
)
from musespark.model.families.muse import check_text, eos_to_dict
from musespark.model.json_file import show

# What transformers' Llama4TextConfig has by default, and the parts of the Muse families that are absent.
DEFAULTS: dict[str, Any] = {
    "hidden_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "num_local_experts": 16,
    "num_experts_per_tok": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_shared_experts": 1,
    "attention_chunk_size": 8192,
    "sliding_window": 0,
    **dict.fromkeys(("post_norm_eps", "final_logit_softcapping", "residual_gate_temperature"), 0.0),
    **dict.fromkeys(("qk_scale_factor", "output_multiplier"), 1.0),
}
TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("max_position_embeddings", "initializer_range", "rms_norm_eps", "num_local_experts", "num_experts_per_tok"),
    *("attention_chunk_size", "floor_scale", "attn_scale", "bos_token_id", "eos_token_id", "pad_token_id"),
)
VISION_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
PROJECTOR_FIELDS = ("projector_input_dim", "projector_output_dim", "vision_output_dim")
LAYER_TYPES = tuple(kind for kind in get_args(LayerType) if kind != "sliding_attention")


def config_from_dict(data: Mapping[str, Any]) -> ModelConfig:
    only(data, "config.json", tie_word_embeddings=False)
    text = _text_from_dict(object_of(data, "text_config", "config.json"))
    vision, projector = None, 4096
    if data.get("vision_config") is not None:
        vision, projector = _vision_from_dict(object_of(data, "vision_config", "config.json"))
    name = "image_token_id" if "image_token_id" in data else "image_token_index"
    return ModelConfig(
        text=text,
        tile_vision=vision,
        projector_hidden_size=projector,
        image_token_id=integer(data, name, "config.json", 200_092),
        model_type="llama4",
    )


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    data = {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": config.model_type,
        "text_config": _text_to_dict(config.text),
        "image_token_index": config.image_token_id,
        "tie_word_embeddings": False,
    }
    if config.tile_vision is not None:
        vision = asdict(config.tile_vision)
        data["vision_config"] = {name: vision[name] for name in VISION_FIELDS} | {
            "model_type": "llama4_vision_model",
            "hidden_act": "gelu",
            "image_size": config.tile_vision.image_size,
            "pixel_shuffle_ratio": 1 / config.tile_vision.merge_size,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.tile_vision.rope_theta},
            **dict.fromkeys(PROJECTOR_FIELDS, config.projector_hidden_size),
        }
    return data


def _text_from_dict(data: Mapping[str, Any]) -> TextConfig:
    where = "text_config"
    only(data, where, model_type="llama4_text", hidden_act="silu", attention_bias=False, tie_word_embeddings=False)
    values = DEFAULTS | numbers_of(TextConfig, data, where, TEXT_FIELDS)
    n = values["num_hidden_layers"]
    values |= {
        "intermediate_size": integer(data, "intermediate_size_mlp", where, 16384),
        "moe_intermediate_size": integer(data, "intermediate_size", where, 8192),
        "moe_hidden_size": values["hidden_size"],
        "use_qk_norm": switch(data, "use_qk_norm", where, True),
        # Early files hold the integer 4 here.
        "attn_temperature_tuning": switch(data, "attn_temperature_tuning", where, True),
        "mlp_layer_types": _mlp_layer_types(data, where, n),
    }
    values |= _rope(data, where, values["max_position_embeddings"])
    interval = integer(data, "no_rope_layer_interval", where, 4)
    by_interval = tuple((i + 1) % interval != 0 for i in range(n))
    given = data.get("no_rope_layers") or None  # transformers takes an empty list for none
    if isinstance(given, list | tuple):
        given = given[:n]  # transformers allows a longer one
    uses_rope = flags({"no_rope_layers": given}, "no_rope_layers", where, by_interval)
    kinds = tuple("chunked_attention" if used else "full_attention" for used in uses_rope)
    values |= {"layer_uses_rope": uses_rope, "layer_types": choices(data, "layer_types", where, kinds, LAYER_TYPES)}
    no_chunk_size = "attention_chunk_size" in data and data["attention_chunk_size"] is None
    if no_chunk_size and "chunked_attention" in values["layer_types"]:
        raise ConfigError(f"{where}: attention_chunk_size is null, but layer_types has chunked_attention")
    config = TextConfig(**values, other_eos_token_ids=other_eos_token_ids(data, where))
    check_text(config)
    return config


def _mlp_layer_types(data: Mapping[str, Any], where: str, num_layers: int) -> tuple[str, ...]:
    step = integer(data, "interleave_moe_layer_step", where, 1)
    moe_layers = data.get("moe_layers")
    if moe_layers is None:
        moe_layers = range(step - 1, num_layers, step)
    elif not isinstance(moe_layers, list) or not all(type(i) is int and 0 <= i < num_layers for i in moe_layers):
        raise ConfigError(f"{where}: moe_layers is {show(moe_layers)}; it must list layers from 0 to {num_layers - 1}")
    return tuple("sparse" if i in set(moe_layers) else "dense" for i in range(num_layers))


def _rope(data: Mapping[str, Any], where: str, longest: int) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` from either age of file."""
    rope, place = rope_parameters(data, where), f"{where}.rope_parameters"
    theta = number(rope, "rope_theta", place, 500_000.0)
    if rope.get("rope_type") in (None, "default"):
        return {"rope_theta": theta}
    only(rope, place, rope_type="llama3", partial_rotary_factor=1.0)
    missing = [name for name in ("factor", "low_freq_factor", "high_freq_factor") if rope.get(name) is None]
    if missing:
        raise ConfigError(f"{place}: {', '.join(missing)} must be given for rope_type 'llama3'")
    scaling = RopeScaling(
        factor=number(rope, "factor", place),
        low_freq_factor=number(rope, "low_freq_factor", place),
        high_freq_factor=number(rope, "high_freq_factor", place),
        original_max_position_embeddings=integer(rope, "original_max_position_embeddings", place, longest),
    )
    if scaling.high_freq_factor < scaling.low_freq_factor:
        raise ConfigError(
            f"{place}: high_freq_factor {scaling.high_freq_factor} is below low_freq_factor {scaling.low_freq_factor}"
        )
    return {"rope_theta": theta, "rope_scaling": scaling}


def _text_to_dict(text: TextConfig) -> dict[str, Any]:
    values = {name: value for name, value in asdict(text).items() if name in TEXT_FIELDS}
    n = text.num_hidden_layers
    moe_layers = [i for i, kind in enumerate(text.mlp_layer_types) if kind == "sparse"]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": text.rope_theta}
    if text.rope_scaling is not None:
        rope |= {"rope_type": "llama3", **asdict(text.rope_scaling)}
    values |= {
        "model_type": "llama4_text",
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "eos_token_id": eos_to_dict(text),
        "intermediate_size": text.moe_intermediate_size,
        "intermediate_size_mlp": text.intermediate_size,
        "use_qk_norm": text.use_qk_norm,
        "attn_temperature_tuning": text.attn_temperature_tuning,
        "rope_parameters": rope,
        "no_rope_layers": [int(used) for used in text.layer_uses_rope],
        "layer_types": list(text.layer_types),
        "moe_layers": moe_layers,
    }
    # Other engines go by the step and not by the list.
    steps = [step for step in range(1, n + 1) if moe_layers == list(range(step - 1, n, step))]
    return values | ({"interleave_moe_layer_step": steps[0]} if steps else {})


def _vision_from_dict(data: Mapping[str, Any]) -> tuple[TileVisionConfig, int]:
    """The tower, and the width of its adapter."""
    where = "vision_config"
    only(data, where, model_type="llama4_vision_model", hidden_act="gelu", num_channels=3, norm_eps=1e-5)
    only(data, where, multi_modal_projector_bias=False, vision_feature_select_strategy="default")
    defaults = {"hidden_size": 768, "image_size": 448, "vision_output_dim": 7680}  # of transformers' class
    values = {name: defaults[name] for name in ("hidden_size", "image_size")}
    values |= numbers_of(TileVisionConfig, data, where, (*VISION_FIELDS, "image_size"))
    rope = rope_parameters(data, where)
    only(rope, f"{where}.rope_parameters", rope_type="default")
    ratio = number(data, "pixel_shuffle_ratio", where, 0.5)
    merge_size = max(1, round(1 / ratio)) if ratio > 1e-3 else 0
    theta = number(rope, "rope_theta", f"{where}.rope_parameters", 10_000.0)
    config = TileVisionConfig(**values, merge_size=merge_size, rope_theta=theta)
    widths = {name: integer(data, name, where, defaults.get(name, 4096)) for name in PROJECTOR_FIELDS}
    if merge_size == 0 or ratio != 1 / merge_size:
        raise ConfigError(f"{where}: pixel_shuffle_ratio is {ratio}; it must be 1 over an integer")
    if config.hidden_size % (4 * config.num_attention_heads):
        raise ConfigError(
            f"{where}: hidden_size {config.hidden_size} must divide into {config.num_attention_heads} heads "
            "of a multiple of 4; the rotary embedding is two-dimensional"
        )
    if config.image_size % (config.patch_size * merge_size):
        raise ConfigError(
            f"{where}: image_size {config.image_size} is not a multiple of {merge_size} patches of {config.patch_size}"
        )
    if config.intermediate_size != config.hidden_size * merge_size**2:
        raise ConfigError(
            f"{where}: intermediate_size {config.intermediate_size} must be hidden_size {config.hidden_size} times "
            f"{merge_size**2}; the adapter reads merged cells of that width"
        )
    if len(set(widths.values())) > 1:
        listing = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ConfigError(f"{where}: {listing} must be equal")
    return config, widths["vision_output_dim"]
