"""What a network is: the fields of a Hugging Face `config.json` of the `muse_spark` family, checked.

Field names and defaults are those of transformers' `MuseSparkConfig`, so a file written here loads there and the other
way round. A config is read, never patched: lists such as `layer_types` are filled in once, in `from_dict`, and an
explicit list in the file wins over the rule. The audio tower of the published release is described, so that its size
can be counted, and never run: its tensors are skipped at load and audio input is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from musespark.errors import ConfigError
from musespark.model.json_file import read_json_object

LayerType = Literal["full_attention", "sliding_attention"]
VisionLayerType = Literal["full_attention", "window_attention"]
MlpLayerType = Literal["sparse", "dense"]

MAX_CONFIG_BYTES = 16 << 20
LARGEST_DIMENSION = 1 << 24  # far above any published size; keeps shape products inside 64 bits


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The decoder. Source: transformers 5.23 `MuseSparkTextConfig`."""

    vocab_size: int = 202_048
    hidden_size: int = 8192
    intermediate_size: int = 16384
    num_hidden_layers: int = 62
    num_attention_heads: int = 128
    num_key_value_heads: int = 16
    head_dim: int = 64
    max_position_embeddings: int = 1_048_576
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    post_norm_eps: float = 1e-8
    sliding_window: int = 2048
    rope_theta: float = 500_000.0
    final_logit_softcapping: float = 20.0
    qk_scale_factor: float = 5.4730064863875
    output_multiplier: float = 0.1767766952966369
    moe_hidden_size: int = 4096
    moe_intermediate_size: int = 4096
    num_local_experts: int = 256
    num_experts_per_tok: int = 8
    routed_scaling_factor: float = 1.0
    residual_gate_temperature: float = 0.3
    bos_token_id: int = 200_000
    eos_token_id: int = 200_001
    pad_token_id: int = 200_018
    layer_types: tuple[LayerType, ...] = ()
    mlp_layer_types: tuple[MlpLayerType, ...] = ()
    layer_uses_rope: tuple[bool, ...] = ()  # `layer_rope_theta` in the file, where 0 means no rotary embedding


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The image tower. Source: transformers 5.23 `MuseSparkVisionConfig`."""

    hidden_size: int = 1536
    intermediate_size: int = 8960
    num_hidden_layers: int = 50
    num_attention_heads: int = 16
    patch_size: int = 14
    patch_temporal: int = 2
    merge_size: int = 2
    pos_emb_height: int = 32
    pos_emb_width: int = 32
    layer_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    layer_types: tuple[VisionLayerType, ...] = ()

    @property
    def window(self) -> int:
        """Side of an attention window, in patches: that of the position table (32 patches, 448 px)."""
        return self.pos_emb_height

    @property
    def merged_size(self) -> int:
        """Width of one merged cell, channel-major: hidden_size · merge_size²."""
        return self.hidden_size * self.merge_size**2


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """The audio tower of the published release; counted, not run. Source: transformers 5.23 `MuseSparkAudioConfig`."""

    patch_sizes: tuple[int, ...] = (16, 6, 5, 4)
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    mlp_ratio: float = 4.0
    conv_kernel_size: int = 7


# transformers builds an audio tower for every muse_spark config. A model without one is written with the smallest that
# transformers accepts: one stage of width 1 with no blocks.
NO_AUDIO_TOWER = {"patch_sizes": [1920], "hidden_sizes": [1], "depths": [0], "num_hidden_layers": 1}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One checkpoint's `config.json`. `vision` is None for a text-only model, `audio` None without an audio tower."""

    text: TextConfig
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    projector_hidden_size: int = 4096
    image_token_id: int = 200_092
    model_type: Literal["muse_spark"] = "muse_spark"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Check a parsed `config.json`. Raises ConfigError naming the field."""
        if not isinstance(data, Mapping):
            raise ConfigError("config.json must hold a JSON object")
        if "auto_map" in data:
            raise ConfigError("config.json has `auto_map`: code in checkpoints is never run; remove the field")
        model_type = data.get("model_type")
        if model_type != "muse_spark":
            raise ConfigError(f"config.json has model_type {model_type!r}; this version loads 'muse_spark'")
        text = _text_from_dict(_mapping(data, "text_config"))
        vision = None
        if data.get("vision_config") is not None:
            vision = _vision_from_dict(_mapping(data, "vision_config"))
        audio = None
        if data.get("audio_config") is not None:
            audio = _audio_from_dict(_mapping(data, "audio_config"))
        config = cls(
            text=text,
            vision=vision,
            audio=audio,
            projector_hidden_size=_integer(data, "projector_hidden_size", 4096),
            image_token_id=_integer(data, "image_token_id", 200_092, low=0),
        )
        merged = data.get("out_hidden_size")
        if vision is not None and merged is not None and merged != vision.merged_size:
            raise ConfigError(f"out_hidden_size is {merged}, but the vision tower gives {vision.merged_size}")
        if vision is not None and config.image_token_id >= text.vocab_size:
            raise ConfigError(f"image_token_id {config.image_token_id} is outside the vocabulary of {text.vocab_size}")
        return config

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        return cls.from_dict(cls.read(path))

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The parsed file, not checked further. Raises ConfigError."""
        try:
            return read_json_object(path, MAX_CONFIG_BYTES)
        except FileNotFoundError:
            raise ConfigError(f"{path} does not exist; a checkpoint folder must hold a config.json") from None
        except ValueError as error:
            raise ConfigError(f"{path} can't be read as JSON: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json` as transformers' `MuseSparkConfig` reads it.

        A text-only model is written without a `vision_config`; transformers has no such variant of this class.
        """
        text = asdict(self.text)
        theta = text.pop("rope_theta")
        uses_rope = text.pop("layer_uses_rope")
        text |= {
            "model_type": "muse_spark_text",
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "layer_rope_theta": [theta if used else 0 for used in uses_rope],
            "layer_types": list(self.text.layer_types),
            "mlp_layer_types": list(self.text.mlp_layer_types),
        }
        data: dict[str, Any] = {
            "architectures": ["MuseSparkForConditionalGeneration"],
            "model_type": self.model_type,
            "text_config": text,
            "image_token_id": self.image_token_id,
            "projector_hidden_size": self.projector_hidden_size,
            "projector_hidden_act": "gelu",
            "tie_word_embeddings": False,
        }
        audio = (
            NO_AUDIO_TOWER if self.audio is None else asdict(self.audio) | {"num_hidden_layers": len(self.audio.depths)}
        )
        data["audio_config"] = {"model_type": "muse_spark_audio", **audio, "out_hidden_size": self.text.hidden_size}
        if self.vision is not None:
            vision = asdict(self.vision)
            vision_theta = vision.pop("rope_theta")
            vision |= {
                "model_type": "muse_spark_vision",
                "hidden_act": "gelu",
                "max_position_embeddings": self.vision.pos_emb_height * self.vision.pos_emb_width,
                "rope_parameters": {"rope_type": "axial", "rope_theta": vision_theta},
                "layer_types": list(self.vision.layer_types),
            }
            data |= {"vision_config": vision, "out_hidden_size": self.vision.merged_size}
        return data


def _text_from_dict(data: Mapping[str, Any]) -> TextConfig:
    if data.get("model_type", "muse_spark_text") != "muse_spark_text":
        raise ConfigError(f"text_config.model_type is {data['model_type']!r}, expected 'muse_spark_text'")
    for name, expected in (("attention_bias", False), ("tie_word_embeddings", False), ("hidden_act", "silu")):
        if data.get(name, expected) != expected:
            raise ConfigError(f"text_config.{name} is {data[name]!r}; only {expected!r} is part of this architecture")
    if data.get("num_shared_experts", 0):
        raise ConfigError("text_config.num_shared_experts must be 0: muse_spark has no shared expert")
    values = _plain_fields(TextConfig, data, "text_config")
    rope = data.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(
            f"text_config.rope_parameters.rope_type is {rope['rope_type']!r}; only 'default' is supported"
        )
    values["rope_theta"] = _number(rope, "rope_theta", 500_000.0, "text_config.rope_parameters")
    n = values.get("num_hidden_layers", TextConfig().num_hidden_layers)
    full = [(n - 1 - i) % 4 == 0 for i in range(n)]  # counted backward from the last layer
    kinds = ["full_attention" if f else "sliding_attention" for f in full]
    values["layer_types"] = _choices(data, "layer_types", kinds, ("full_attention", "sliding_attention"))
    values["mlp_layer_types"] = _choices(data, "mlp_layer_types", ["sparse"] * n, ("sparse", "dense"))
    theta = data.get("layer_rope_theta")
    values["layer_uses_rope"] = tuple(not f for f in full) if theta is None else tuple(bool(t) for t in theta)
    if len(values["layer_uses_rope"]) != n:
        raise ConfigError(f"layer_rope_theta has {len(values['layer_uses_rope'])} entries for {n} layers")
    config = TextConfig(**values)
    _check_text(config)
    return config


def _check_text(c: TextConfig) -> None:
    if c.num_attention_heads % c.num_key_value_heads:
        raise ConfigError(
            f"num_attention_heads {c.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {c.num_key_value_heads}"
        )
    if c.head_dim % 2:
        raise ConfigError(f"head_dim {c.head_dim} must be even: rotary embedding turns pairs")
    if c.num_experts_per_tok > c.num_local_experts:
        raise ConfigError(
            f"num_experts_per_tok {c.num_experts_per_tok} exceeds num_local_experts {c.num_local_experts}"
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if not 0 <= getattr(c, name) < c.vocab_size:
            raise ConfigError(f"{name} {getattr(c, name)} is outside the vocabulary of {c.vocab_size}")


def _vision_from_dict(data: Mapping[str, Any]) -> VisionConfig:
    if data.get("model_type", "muse_spark_vision") != "muse_spark_vision":
        raise ConfigError(f"vision_config.model_type is {data['model_type']!r}, expected 'muse_spark_vision'")
    if data.get("hidden_act", "gelu") != "gelu":
        raise ConfigError(f"vision_config.hidden_act is {data['hidden_act']!r}; only 'gelu' (exact) is supported")
    values = _plain_fields(VisionConfig, data, "vision_config")
    rope = data.get("rope_parameters") or {}
    values["rope_theta"] = _number(rope, "rope_theta", 10_000.0, "vision_config.rope_parameters")
    n = values.get("num_hidden_layers", VisionConfig().num_hidden_layers)
    kinds = ["full_attention" if (i + 1) % 4 == 0 or i == n - 1 else "window_attention" for i in range(n)]
    values["layer_types"] = _choices(data, "layer_types", kinds, ("full_attention", "window_attention"))
    config = VisionConfig(**values)
    if config.hidden_size % config.num_attention_heads or config.hidden_size // config.num_attention_heads % 4:
        raise ConfigError(
            f"vision hidden_size {config.hidden_size} must divide into {config.num_attention_heads} heads "
            "of a multiple of 4: the rotary embedding is two-dimensional"
        )
    if config.pos_emb_height != config.pos_emb_width:
        raise ConfigError("pos_emb_height and pos_emb_width must be equal: attention windows are square")
    if config.patch_temporal != 2:
        raise ConfigError(f"patch_temporal is {config.patch_temporal}; the patch embedding takes 2 frames")
    return config


def _audio_from_dict(data: Mapping[str, Any]) -> AudioConfig | None:
    default = AudioConfig()
    values: dict[str, Any] = {}
    for name in ("patch_sizes", "hidden_sizes", "depths"):
        value = data.get(name) or getattr(default, name)
        if not isinstance(value, list | tuple) or any(
            isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in value
        ):
            raise ConfigError(f"audio_config.{name} must be a list of integers, not {value!r}")
        values[name] = tuple(value)
    if len({len(value) for value in values.values()}) != 1:
        raise ConfigError("audio_config.patch_sizes, hidden_sizes and depths must have one entry per stage")
    if values["depths"] == tuple(NO_AUDIO_TOWER["depths"]):  # type: ignore[arg-type]
        return None
    values["mlp_ratio"] = _number(data, "mlp_ratio", default.mlp_ratio, "audio_config")
    values["conv_kernel_size"] = _integer(data, "conv_kernel_size", default.conv_kernel_size, where="audio_config")
    return AudioConfig(**values)


def _plain_fields(kind: type, data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The int and float fields of `kind` that the file gives, each checked; a null means the default."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in fields(kind):
        if data.get(field.name) is None:
            continue
        if hints[field.name] is int:
            low = 0 if field.name.endswith("_token_id") else 1
            value = data[field.name]
            if field.name == "eos_token_id" and isinstance(value, list) and value:
                data = {**data, field.name: value[0]}  # every id of the list is in generation_config.json
            values[field.name] = _integer(data, field.name, None, low=low, where=where)
        elif hints[field.name] is float:
            values[field.name] = _number(data, field.name, None, where)
    return values


def _mapping(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    if not isinstance(value, Mapping):
        raise ConfigError(f"config.json must hold an object named {name}")
    return value


def _integer(data: Mapping[str, Any], name: str, default: Any, *, low: int = 1, where: str = "config.json") -> int:
    value = data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= LARGEST_DIMENSION:
        raise ConfigError(f"{where}.{name} is {value!r}; it must be an integer from {low} to {LARGEST_DIMENSION:,}")
    return value


def _number(data: Mapping[str, Any], name: str, default: Any, where: str) -> float:
    value = data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{where}.{name} is {value!r}; it must be a positive finite number")
    return float(value)


def _choices(data: Mapping[str, Any], name: str, default: list[str], allowed: tuple[str, ...]) -> tuple[Any, ...]:
    value = data.get(name) or default
    if not isinstance(value, list | tuple) or len(value) != len(default) or any(v not in allowed for v in value):
        raise ConfigError(f"{name} must be a list of {len(default)} values out of {', '.join(allowed)}")
    return tuple(value)
