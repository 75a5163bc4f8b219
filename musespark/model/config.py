"""What a network is: the fields of a Hugging Face `config.json` of the `muse_spark` family, checked.

Field names and defaults are those of transformers' `MuseSparkConfig`, so a file written here loads there and the other
way round. A config is read, never patched: lists such as `layer_types` are filled in once, in `from_dict`, and an
explicit list in the file wins over the rule. The audio tower of the published release is described, so that its size
can be counted, and never run: its tensors are skipped at load and audio input is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from musespark.errors import ConfigError
from musespark.model.config_fields import choices, flags, integer, integers, number, numbers_of, object_of, only
from musespark.model.json_file import read_json_object, show

LayerType = Literal["full_attention", "sliding_attention"]
VisionLayerType = Literal["full_attention", "window_attention"]
MlpLayerType = Literal["sparse", "dense"]

MAX_CONFIG_BYTES = 16 << 20


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
    bos_token_id: int = 200_000  # this and the next are not checked against vocab_size: small test models leave them
    eos_token_id: int = 200_001
    pad_token_id: int | None = None
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


STAGE_FIELDS = ("patch_sizes", "hidden_sizes", "depths")

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
    image_token_id: int = 200_092  # outside a small vocabulary, no text can contain it
    model_type: Literal["muse_spark"] = "muse_spark"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Check a parsed `config.json`. Raises ConfigError naming the field, its value and what it may be."""
        if not isinstance(data, Mapping) or data.get("model_type") != "muse_spark":
            found = show(data.get("model_type") if isinstance(data, Mapping) else data)
            raise ConfigError(f"config.json: model_type is {found}; this version loads 'muse_spark'")
        only(data, "config.json", tie_word_embeddings=False, projector_hidden_act="gelu")
        text = _text_from_dict(object_of(data, "text_config", "config.json"))
        vision = audio = None
        if data.get("vision_config") is not None:
            vision = _vision_from_dict(object_of(data, "vision_config", "config.json"))
            only(data, "config.json", out_hidden_size=vision.merged_size)
        if data.get("audio_config") is not None:
            audio = _audio_from_dict(object_of(data, "audio_config", "config.json"), text)
        return cls(
            text=text,
            vision=vision,
            audio=audio,
            projector_hidden_size=integer(data, "projector_hidden_size", "config.json", 4096),
            image_token_id=integer(data, "image_token_id", "config.json", 200_092),
        )

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
    where = "text_config"
    only(data, where, model_type="muse_spark_text", hidden_act="silu", attention_bias=False, tie_word_embeddings=False)
    only(data, where, num_shared_experts=0)
    values = numbers_of(TextConfig, data, where)
    rope = object_of(data, "rope_parameters", where, optional=True)
    only(rope, f"{where}.rope_parameters", rope_type="default", partial_rotary_factor=1.0)
    values["rope_theta"] = number(rope, "rope_theta", f"{where}.rope_parameters", 500_000.0)
    n = values.get("num_hidden_layers", TextConfig().num_hidden_layers)
    full = [(n - 1 - i) % 4 == 0 for i in range(n)]  # counted backward from the last layer
    kinds = tuple("full_attention" if is_full else "sliding_attention" for is_full in full)
    values["layer_types"] = choices(data, "layer_types", where, kinds, get_args(LayerType))
    values["mlp_layer_types"] = choices(data, "mlp_layer_types", where, ("sparse",) * n, get_args(MlpLayerType))
    values["layer_uses_rope"] = flags(data, "layer_rope_theta", where, tuple(not is_full for is_full in full))
    config = TextConfig(**values)
    _check_text(config)
    return config


def _check_text(c: TextConfig) -> None:
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


def _vision_from_dict(data: Mapping[str, Any]) -> VisionConfig:
    where = "vision_config"
    only(data, where, model_type="muse_spark_vision", hidden_act="gelu", patch_temporal=2)
    values = numbers_of(VisionConfig, data, where)
    rope = object_of(data, "rope_parameters", where, optional=True)
    only(rope, f"{where}.rope_parameters", rope_type="axial")
    values["rope_theta"] = number(rope, "rope_theta", f"{where}.rope_parameters", 10_000.0)
    n = values.get("num_hidden_layers", VisionConfig().num_hidden_layers)
    kinds = tuple("full_attention" if (i + 1) % 4 == 0 or i == n - 1 else "window_attention" for i in range(n))
    values["layer_types"] = choices(data, "layer_types", where, kinds, get_args(VisionLayerType))
    config = VisionConfig(**values)
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
