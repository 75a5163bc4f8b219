"""config.json of muse_glimmer and llama4: read as transformers reads it, and its traps refused or understood."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Llama4TextConfig, MuseGlimmerConfig

from musespark.errors import ConfigError
from musespark.model.config import ModelConfig, RopeScaling
from musespark.model.generation import GenerationDefaults
from musespark.model.presets import preset
from tests.model.files import transformers_config
from tests.model.test_config import VALUES

TOYS = {name: preset(name).to_dict() for name in ("toy-glimmer", "toy-llama4")}
FIELDS = [
    (name, (*parents, field))
    for name, data in TOYS.items()
    for parents in ((), ("text_config",), ("vision_config",))
    for field in (data[parents[0]] if parents else data)
]


def changed(name: str, path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The config.json of a toy with the field at `path` set."""
    data = copy.deepcopy(TOYS[name])
    place = data
    for parent in path[:-1]:
        place = place[parent]
    place[path[-1]] = value
    return data


def llama4(**text: Any) -> ModelConfig:
    """The toy with fields of its text_config set; a field set to `...` is removed."""
    data = copy.deepcopy(TOYS["toy-llama4"])
    fields = data["text_config"] | text
    data["text_config"] = {name: value for name, value in fields.items() if value is not ...}
    return ModelConfig.from_dict(data)


class TestGlimmer:
    def test_the_defaults_of_transformers_are_the_published_preset_once_the_rotary_base_is_said(self) -> None:
        theirs = MuseGlimmerConfig().to_dict()
        theirs["text_config"]["pad_token_id"] = 200_018
        theirs["text_config"]["rope_parameters"]["rope_theta"] = 500_000.0
        theirs["text_config"]["layer_rope_theta"] = None
        assert ModelConfig.from_dict(theirs) == preset("muse-glimmer-30b")

    @pytest.mark.parametrize("rope", [None, {}, {"rope_type": "default"}])
    def test_a_file_without_a_rotary_base_is_refused_because_the_class_default_is_wrong(self, rope: Any) -> None:
        assert MuseGlimmerConfig().text_config.rope_parameters["rope_theta"] == 10_000  # the trap
        with pytest.raises(ConfigError, match="rope_parameters has no rope_theta; the released model has 500000"):
            ModelConfig.from_dict(changed("toy-glimmer", ("text_config", "rope_parameters"), rope))

    def test_full_layers_of_the_release_are_3_7_to_51_and_have_no_rotary_embedding(self) -> None:
        text = preset("muse-glimmer-30b").text
        full = [i for i, kind in enumerate(text.layer_types) if kind == "full_attention"]
        assert full == list(range(3, 52, 4))
        assert [i for i, used in enumerate(text.layer_uses_rope) if not used] == full

    def test_the_position_table_is_sampled_in_plain_order_unlike_in_muse_spark(self) -> None:
        glimmer, spark = preset("muse-glimmer-30b").vision, preset("muse-spark-open").vision
        assert glimmer is not None
        assert spark is not None
        assert (glimmer.pos_emb_order, spark.pos_emb_order) == ("ij", "xy")

    def test_the_file_names_the_activation_as_transformers_does(self) -> None:
        text = TOYS["toy-glimmer"]["text_config"]
        assert text["hidden_activation"] == "silu"
        assert "hidden_act" not in text
        assert not [name for name in text if "moe" in name or "expert" in name or "residual" in name]


class TestLlama4:
    def test_the_preset_of_scout_is_its_published_configuration(self) -> None:
        text = preset("llama-4-scout").text
        assert text.rope_scaling == RopeScaling(16.0, 1.0, 1.0, 8192)
        assert text.layer_types == (*["chunked_attention"] * 3, "full_attention") * 12
        assert text.layer_uses_rope == (True, True, True, False) * 12
        assert set(text.mlp_layer_types) == {"sparse"}
        assert text.use_qk_norm
        assert (text.moe_intermediate_size, text.intermediate_size) == (8192, 16384)
        assert text.eos_token_ids == (200_001, 200_007, 200_008)

    def test_the_preset_of_maverick_has_experts_in_odd_layers(self) -> None:
        text = preset("llama-4-maverick").text
        assert text.mlp_layer_types == ("dense", "sparse") * 24
        assert text.rope_scaling is None
        assert not text.use_qk_norm

    @pytest.mark.parametrize("value", [4, 1, True])
    def test_the_integer_4_of_early_files_switches_temperature_tuning_on(self, value: Any) -> None:
        assert llama4(attn_temperature_tuning=value).text.attn_temperature_tuning is True

    @pytest.mark.parametrize("value", [0, False])
    def test_temperature_tuning_can_be_off(self, value: Any) -> None:
        assert llama4(attn_temperature_tuning=value).text.attn_temperature_tuning is False
        assert llama4(attn_temperature_tuning=...).text.attn_temperature_tuning is True

    def test_early_files_have_rotary_settings_in_two_fields(self) -> None:
        scaling = {
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 128,
            "rope_type": "llama3",
        }
        early = llama4(rope_parameters=..., rope_theta=10_000.0, rope_scaling=scaling)
        assert early == ModelConfig.from_dict(TOYS["toy-llama4"])

    @pytest.mark.parametrize("value", [None, [], ...])
    def test_no_rope_layers_is_filled_in_by_its_interval(self, value: Any) -> None:
        config = llama4(no_rope_layers=value, layer_types=..., no_rope_layer_interval=2)
        assert config.text.layer_uses_rope == (True, False, True, False)
        assert config.text.layer_types == ("chunked_attention", "full_attention") * 2

    def test_one_in_no_rope_layers_means_rotary_embedding_and_a_chunked_layer(self) -> None:
        config = llama4(no_rope_layers=[0, 1, 1, 0, 1], layer_types=...)  # longer than the layers, as is allowed
        assert config.text.layer_uses_rope == (False, True, True, False)
        assert config.text.layer_types[:2] == ("full_attention", "chunked_attention")

    @pytest.mark.parametrize("num_layers", [1, 4, 5])
    @pytest.mark.parametrize("step", [1, 2, 3, 7])
    def test_expert_layers_are_those_of_transformers_in_either_spelling(self, num_layers: int, step: int) -> None:
        theirs = Llama4TextConfig(num_hidden_layers=num_layers, interleave_moe_layer_step=step).moe_layers
        fields: dict[str, Any] = {"num_hidden_layers": num_layers, "no_rope_layers": ..., "layer_types": ...}
        by_step = llama4(moe_layers=..., interleave_moe_layer_step=step, **fields)
        assert [i for i, kind in enumerate(by_step.text.mlp_layer_types) if kind == "sparse"] == theirs
        assert llama4(moe_layers=theirs, **fields) == by_step
        assert ModelConfig.from_dict(by_step.to_dict()) == by_step

    def test_the_step_is_written_for_engines_that_go_by_it(self) -> None:
        assert preset("llama-4-maverick").to_dict()["text_config"]["interleave_moe_layer_step"] == 2
        assert "interleave_moe_layer_step" not in llama4(moe_layers=[0, 3]).to_dict()["text_config"]

    def test_without_a_generation_config_all_end_ids_count(self, tmp_path: Any) -> None:
        defaults = GenerationDefaults.from_file(tmp_path / "none.json", preset("llama-4-scout"))
        assert defaults.eos_token_ids == (200_001, 200_007, 200_008)

    def test_tokens_per_tile_are_the_published_ones(self) -> None:
        vision = preset("llama-4-scout").tile_vision
        assert vision is not None
        assert (vision.side, vision.tokens_per_tile) == (24, 144)

    def test_a_model_without_chunked_layers_needs_no_chunk_size(self) -> None:
        config = llama4(layer_types=["full_attention"] * 4, attention_chunk_size=None)
        assert config.text.local_span == 0
        assert config.to_dict()["text_config"]["attention_chunk_size"] == 8192  # transformers wants one all the same
        assert ModelConfig.from_dict(transformers_config(config).to_dict()) == config

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("text_config.hidden_act", "gelu", "hidden_act is 'gelu'"),
            ("text_config.attention_bias", True, "attention_bias is True"),
            ("text_config.num_experts_per_tok", 5, "num_experts_per_tok 5 exceeds num_local_experts 4"),
            ("text_config.attention_chunk_size", None, "attention_chunk_size is null, but layer_types has chunked"),
            ("text_config.attention_chunk_size", 0, "attention_chunk_size is 0"),
            ("text_config.attn_temperature_tuning", "4", "attn_temperature_tuning is '4'; it must be true or false"),
            ("text_config.use_qk_norm", 1.0, "use_qk_norm is 1.0"),
            ("text_config.moe_layers", [4], "moe_layers is .*from 0 to 3"),
            ("text_config.moe_layers", 1, "moe_layers is 1"),
            ("text_config.no_rope_layers", [1, 0], "no_rope_layers must be a list of 4"),
            ("text_config.layer_types", ["sliding_attention"] * 4, "out of full_attention, chunked_attention"),
            ("text_config.floor_scale", 0, "floor_scale is 0"),
            ("text_config.rope_parameters.rope_type", "yarn", "rope_type is 'yarn'; only 'llama3'"),
            ("text_config.rope_parameters.factor", None, "factor must be given"),
            ("text_config.rope_parameters.factor", 0, "factor is 0"),
            ("text_config.rope_parameters.low_freq_factor", 2.0, "high_freq_factor 1.0 is below low_freq_factor 2.0"),
            ("vision_config.patch_size", [14, 14], "patch_size is"),
            ("vision_config.image_size", 57, "image_size 57 is not a multiple of 2 patches of 14"),
            ("vision_config.image_size", 42, "image_size 42 is not a multiple of 2 patches of 14"),
            ("vision_config.intermediate_size", 64, "intermediate_size 64 must be hidden_size 32 times 4"),
            ("vision_config.pixel_shuffle_ratio", 0.4, "pixel_shuffle_ratio is 0.4; it must be 1 over an integer"),
            ("vision_config.pixel_shuffle_ratio", 2.0, "pixel_shuffle_ratio is 2.0"),
            ("vision_config.vision_output_dim", 49, "vision_output_dim 49 must be equal"),
            ("vision_config.norm_eps", 1e-6, "norm_eps is 1e-06"),
            ("vision_config.num_attention_heads", 3, "must divide into 3 heads"),
        ],
    )
    def test_a_field_that_cannot_be_run_is_refused_by_name(self, path: str, value: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            ModelConfig.from_dict(changed("toy-llama4", tuple(path.split(".")), value))


@given(place=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_in_any_field_is_a_config_or_a_config_error(place: tuple[str, tuple[str, ...]], value: Any) -> None:
    with contextlib.suppress(ConfigError):
        config = ModelConfig.from_dict(changed(*place, value))
        assert ModelConfig.from_dict(config.to_dict()) == config
