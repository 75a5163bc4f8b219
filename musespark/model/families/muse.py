"""What the `config.json` of both Muse families share: the alternation of layers, and the image tower.

Every fourth layer, counted backward from the last, attends to everything and has no rotary embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

from musespark.errors import ConfigError
from musespark.model.config import TextConfig, VisionConfig, VisionLayerType
from musespark.model.config_fields import choices, flags, number, numbers_of, object_of, only
from musespark.model.config_fields import rope_parameters as read_rope_parameters

LAYER_TYPES = ("full_attention", "sliding_attention")
VISION_FIELDS = tuple(name for name in VisionConfig.__slots__ if name not in ("rope_theta", "layer_types"))


def layer_lists(data: Mapping[str, Any], where: str, num_layers: int) -> dict[str, Any]:
    """`layer_types` and `layer_uses_rope` of a text_config."""
    full = [(num_layers - 1 - i) % 4 == 0 for i in range(num_layers)]
    kinds = tuple("full_attention" if is_full else "sliding_attention" for is_full in full)
    return {
        "layer_types": choices(data, "layer_types", where, kinds, LAYER_TYPES),
        "layer_uses_rope": flags(data, "layer_rope_theta", where, tuple(not is_full for is_full in full)),
    }


def rope_theta(data: Mapping[str, Any], where: str, default: float | None) -> float:
    """The base of the rotary embedding, which has no scaling. Without a default, the file must say it."""
    rope = read_rope_parameters(data, where)
    only(rope, f"{where}.rope_parameters", rope_type="default", partial_rotary_factor=1.0)
    return number(rope, "rope_theta", f"{where}.rope_parameters", default)


def text_to_dict(text: TextConfig, fields: tuple[str, ...]) -> dict[str, Any]:
    """What the text_config of both families holds."""
    values = {name: value for name, value in asdict(text).items() if name in fields}
    return values | {
        "eos_token_id": eos_to_dict(text),
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta},
        "layer_rope_theta": [text.rope_theta if used else 0 for used in text.layer_uses_rope],
        "layer_types": list(text.layer_types),
    }


def eos_to_dict(text: TextConfig) -> int | list[int]:
    return list(text.eos_token_ids) if text.other_eos_token_ids else text.eos_token_id


def check_text(c: TextConfig) -> None:
    """What must hold between the fields of a decoder, whichever family it is of. Raises ConfigError."""
    if c.num_attention_heads % c.num_key_value_heads:
        raise ConfigError(
            f"text_config: num_attention_heads {c.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {c.num_key_value_heads}"
        )
    if c.head_dim % 2:
        raise ConfigError(f"text_config: head_dim is {c.head_dim}; it must be even, rotary embedding turns pairs")
    if c.num_experts_per_tok > c.num_local_experts:
        raise ConfigError(
            f"text_config: num_experts_per_tok {c.num_experts_per_tok} exceeds num_local_experts {c.num_local_experts}"
        )
    if c.pad_token_id is not None and c.pad_token_id >= c.vocab_size:
        raise ConfigError(f"text_config: pad_token_id is {c.pad_token_id}, outside the vocabulary of {c.vocab_size:,}")


def vision_from_dict(data: Mapping[str, Any], model_type: str, **changes: Any) -> VisionConfig:
    """The image tower; `changes` are the fields that the family decides and the file does not hold."""
    where = "vision_config"
    only(data, where, model_type=model_type, hidden_act="gelu", patch_temporal=2)
    values = numbers_of(VisionConfig, data, where, VISION_FIELDS)
    rope = object_of(data, "rope_parameters", where, optional=True)
    only(rope, f"{where}.rope_parameters", rope_type="axial")
    values["rope_theta"] = number(rope, "rope_theta", f"{where}.rope_parameters", 10_000.0)
    n = values.get("num_hidden_layers", VisionConfig().num_hidden_layers)
    kinds = tuple("full_attention" if (i + 1) % 4 == 0 or i == n - 1 else "window_attention" for i in range(n))
    values["layer_types"] = choices(data, "layer_types", where, kinds, get_args(VisionLayerType))
    config = VisionConfig(**values, **changes)
    if config.hidden_size % (4 * config.num_attention_heads):
        raise ConfigError(
            f"vision_config: hidden_size {config.hidden_size} must divide into {config.num_attention_heads} heads "
            "of a multiple of 4; the rotary embedding is two-dimensional"
        )
    if config.pos_emb_height != config.pos_emb_width:
        raise ConfigError(
            f"vision_config: pos_emb_height {config.pos_emb_height} and pos_emb_width {config.pos_emb_width} "
            "must be equal; attention windows are square"
        )
    return config


def vision_to_dict(vision: VisionConfig, model_type: str) -> dict[str, Any]:
    """The fields of `config.json` that describe the tower."""
    values = asdict(vision)
    theta = values.pop("rope_theta")
    del values["pos_emb_order"]
    values |= {
        "model_type": model_type,
        "hidden_act": "gelu",
        "max_position_embeddings": vision.pos_emb_height * vision.pos_emb_width,
        "rope_parameters": {"rope_type": "axial", "rope_theta": theta},
        "layer_types": list(vision.layer_types),
    }
    return {"vision_config": values, "out_hidden_size": vision.merged_size}
