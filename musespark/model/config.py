"""What a network is: the content of a Hugging Face `config.json`, checked, in one vocabulary for three families.

How each family's file is read and written, and what it has that the others lack, is in `families/`. Field names are
those of transformers' `MuseSparkConfig`, and of `Llama4Config` for what only Llama 4 has. A config is read, never
patched: lists such as `layer_types` are filled in once, in `from_dict`, and an explicit list in the file wins over the
rule. The audio tower of the Muse Spark release is described, so that its size can be counted, and never run: its
tensors are skipped at load and audio input is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from musespark.errors import ConfigError
from musespark.model.json_file import read_json_object, show

ModelType = Literal["muse_spark", "muse_glimmer", "llama4"]
LayerType = Literal["full_attention", "sliding_attention", "chunked_attention"]
VisionLayerType = Literal["full_attention", "window_attention"]
MlpLayerType = Literal["sparse", "dense"]

MAX_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3 scaling of rotary frequencies: wavelengths above original/low are stretched by `factor`, those below
    original/high stay, between them it is smoothed. Where low equals high, as in Llama 4 Scout, it is a step."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The decoder. Defaults are those of transformers 5.23 `MuseSparkTextConfig`.

    A size of a part that the family does not have is 0, a factor that it does not apply 1. `intermediate_size` is the
    width of dense layers, `moe_intermediate_size` that of experts, `moe_hidden_size` that of what experts read.
    """

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
    other_eos_token_ids: tuple[int, ...] = ()  # where the file lists several, those after the first
    num_shared_experts: int = 0  # of the width of one expert, for every token; this field and the rest: llama4
    attention_chunk_size: int = 0  # on chunked layers a query sees the keys of its own chunk, up to itself
    use_qk_norm: bool = True
    attn_temperature_tuning: bool = False  # on layers without rotary embedding, queries grow with their position
    floor_scale: int = 8192
    attn_scale: float = 0.1
    rope_scaling: RopeScaling | None = None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return (self.eos_token_id, *self.other_eos_token_ids)

    @property
    def local_span(self) -> int:
        """The most keys that a query of a sliding or chunked layer sees; 0 if there is no such layer."""
        kinds = set(self.layer_types)
        spans = {"sliding_attention": self.sliding_window, "chunked_attention": self.attention_chunk_size}
        return max((span for kind, span in spans.items() if kind in kinds), default=0)


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The image tower of both Muse families, for images of any grid. Source: transformers 5.23."""

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
    pos_emb_order: Literal["xy", "ij"] = "xy"  # of sampling the position table: muse_spark scrambles it, glimmer not

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


@dataclass(frozen=True, slots=True)
class TileVisionConfig:
    """The image tower of Llama 4, for square tiles of one size. Source: transformers 5.23 `Llama4VisionConfig`.

    intermediate_size is the width of the tower's MLP, and also that of a merged cell: hidden_size · merge_size².
    """

    hidden_size: int = 1408
    intermediate_size: int = 5632
    num_hidden_layers: int = 34
    num_attention_heads: int = 16
    image_size: int = 336  # side of a tile in pixels
    patch_size: int = 14
    merge_size: int = 2  # 1 / `pixel_shuffle_ratio`
    rope_theta: float = 10_000.0

    @property
    def side(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        return (self.side // self.merge_size) ** 2


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One checkpoint's `config.json`. A tower that it does not have is None; a text-only model has none."""

    text: TextConfig
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    projector_hidden_size: int = 4096
    image_token_id: int = 200_092  # outside a small vocabulary, no text can contain it
    model_type: ModelType = "muse_spark"
    tile_vision: TileVisionConfig | None = None  # the tower of llama4, whose `vision` is None

    @property
    def image_tower(self) -> VisionConfig | TileVisionConfig | None:
        """The tower for images, of whichever kind the family has; None for a model that reads text only."""
        return self.vision or self.tile_vision

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Check a parsed `config.json`. Raises ConfigError naming the field, its value and what it may be."""
        from musespark.model.families import FAMILIES  # they make what this file defines

        model_type = data.get("model_type") if isinstance(data, Mapping) else data
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            raise ConfigError(f"config.json: model_type is {show(model_type)}; known are {', '.join(FAMILIES)}")
        return FAMILIES[model_type].config_from_dict(data)

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
        """The content of `config.json` as transformers' configuration class of this family reads it.

        A text-only model is written without a `vision_config`; these classes of transformers have no such variant.
        """
        from musespark.model.families import FAMILIES

        return FAMILIES[self.model_type].config_to_dict(self)
