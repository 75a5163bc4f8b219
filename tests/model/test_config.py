"""config.json: what transformers writes is read, what we write transformers reads, what nobody can run is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import MuseSparkConfig

from musespark.errors import ConfigError
from musespark.model.config import AudioConfig, ModelConfig
from musespark.model.presets import PRESETS, preset
from tests.model.files import TOY, toy_config, transformers_config

TEXT_ONLY = ("avocado-nano",)  # transformers has no such variant of this class and would add a tower


def changed(path: str, value: Any) -> dict[str, Any]:
    """The toy preset's config.json with the field at the dotted `path` set."""
    data = copy.deepcopy(TOY.to_dict())
    *parents, name = path.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    place[name] = value
    return data


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_being_written_and_read(name: str, tmp_path: Path) -> None:
    config = preset(name)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert ModelConfig.from_file(tmp_path / "config.json") == config


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in TEXT_ONLY])
def test_transformers_reads_a_preset_and_writes_the_same(name: str) -> None:
    assert ModelConfig.from_dict(transformers_config(preset(name)).to_dict()) == preset(name)


@pytest.mark.parametrize("name", [name for name in PRESETS if preset(name).model_type == "muse_spark"])
def test_transformers_understands_a_preset_as_we_do(name: str) -> None:
    config = preset(name)
    theirs = transformers_config(config)
    assert theirs.text_config.layer_types == list(config.text.layer_types)
    assert [theta != 0 for theta in theirs.text_config.layer_rope_theta] == list(config.text.layer_uses_rope)
    assert theirs.vision_config.layer_types == list(config.vision.layer_types) if config.vision else True
    assert theirs.text_config.rope_parameters["rope_theta"] == config.text.rope_theta


def test_the_defaults_of_transformers_are_the_published_preset() -> None:
    theirs = MuseSparkConfig().to_dict()
    theirs["text_config"]["pad_token_id"] = 200_018  # the release sets it, the class does not
    assert ModelConfig.from_dict(theirs) == preset("muse-spark-open")


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 5, 62])
def test_layers_without_lists_alternate_as_in_transformers(num_layers: int) -> None:
    theirs = MuseSparkConfig(
        text_config={"num_hidden_layers": num_layers}, vision_config={"num_hidden_layers": num_layers}
    ).to_dict()
    ours = ModelConfig.from_dict(
        {
            "model_type": "muse_spark",
            "text_config": {"num_hidden_layers": num_layers},
            "vision_config": {"num_hidden_layers": num_layers},
        }
    )
    assert ours.vision is not None
    assert list(ours.text.layer_types) == theirs["text_config"]["layer_types"]
    assert list(ours.vision.layer_types) == theirs["vision_config"]["layer_types"]
    assert list(ours.text.layer_uses_rope) == [theta != 0 for theta in theirs["text_config"]["layer_rope_theta"]]


def test_full_layers_of_the_release_are_1_5_to_61_and_have_no_rotary_embedding() -> None:
    text = preset("muse-spark-open").text
    full = [i for i, kind in enumerate(text.layer_types) if kind == "full_attention"]
    assert full == list(range(1, 62, 4))
    assert [i for i, used in enumerate(text.layer_uses_rope) if not used] == full


def test_explicit_lists_win_over_the_rule() -> None:
    config = toy_config(
        layer_types=["full_attention", "full_attention"],
        layer_rope_theta=[0, 10_000.0],
        mlp_layer_types=["dense", "sparse"],
    )
    assert config.text.layer_types == ("full_attention", "full_attention")
    assert config.text.layer_uses_rope == (False, True)
    assert config.text.mlp_layer_types == ("dense", "sparse")


def test_a_model_without_vision_or_audio_says_so_after_a_round_trip() -> None:
    config = ModelConfig.from_dict({"model_type": "muse_spark", "text_config": {}})
    assert config.vision is None
    assert config.audio is None
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_the_published_audio_tower_is_described() -> None:
    assert preset("muse-spark-open").audio == AudioConfig()
    assert AudioConfig().patch_sizes == (16, 6, 5, 4)


def test_all_of_several_end_ids_are_kept() -> None:
    config = ModelConfig.from_dict(changed("text_config.eos_token_id", [1, 6]))
    assert config.text.eos_token_id == 1
    assert config.text.eos_token_ids == (1, 6)
    assert config.to_dict()["text_config"]["eos_token_id"] == [1, 6]
    assert ModelConfig.from_dict(changed("text_config.eos_token_id", list(range(64)))).text.eos_token_ids[63] == 63


@pytest.mark.parametrize("field", ["rope_parameters", "rope_scaling"])
def test_a_rotary_base_is_read_from_wherever_a_file_of_any_age_has_it(field: str) -> None:
    data = changed("text_config.rope_parameters", None)
    data["text_config"][field] = {"type": "default", "rope_theta": 77.0}
    assert ModelConfig.from_dict(data).text.rope_theta == 77.0
    data["text_config"] |= {field: None, "rope_theta": 55.0}
    assert ModelConfig.from_dict(data).text.rope_theta == 55.0


def test_fields_that_change_nothing_are_accepted() -> None:
    data = changed("text_config.use_cache", False) | {"transformers_version": "5.23.0", "torch_dtype": "bfloat16"}
    assert ModelConfig.from_dict(data) == TOY


def test_ids_of_the_release_may_stay_in_a_config_of_a_small_vocabulary() -> None:
    config = toy_config(vocab_size=99, bos_token_id=200_000, eos_token_id=200_001, pad_token_id=None)
    assert config.text.pad_token_id is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_type", "iflytek_spark", "model_type is 'iflytek_spark'; known are muse_spark, muse_glimmer, llama4"),
        ("model_type", "llama4", "model_type is 'muse_spark_text'; only 'llama4_text'"),
        ("model_type", ["muse_spark"], "model_type is"),
        ("auto_map", {"AutoModel": "evil.Model"}, "auto_map is refused"),
        ("text_config.auto_map", {}, "text_config: auto_map is refused"),
        ("vision_config.auto_map", None, "vision_config: auto_map is refused"),
        ("text_config", None, "text_config is None; it must be an object"),
        ("text_config", [], "text_config is"),
        ("vision_config", 3, "vision_config is 3"),
        ("audio_config", "yes", "audio_config is 'yes'"),
        ("tie_word_embeddings", True, "tie_word_embeddings is True; only False"),
        ("projector_hidden_act", "relu", "projector_hidden_act is 'relu'"),
        ("projector_hidden_size", 0, "projector_hidden_size is 0"),
        ("image_token_id", -1, "image_token_id is -1"),
        ("out_hidden_size", 127, "out_hidden_size is 127; only 128"),
        ("text_config.model_type", "llama", "model_type is 'llama'"),
        ("text_config.hidden_act", "gelu", "hidden_act is 'gelu'"),
        ("text_config.attention_bias", True, "attention_bias is True"),
        ("text_config.tie_word_embeddings", True, "tie_word_embeddings is True"),
        ("text_config.num_shared_experts", 1, "num_shared_experts is 1"),
        ("text_config.hidden_size", 0, "hidden_size is 0; it must be an integer from 1 to"),
        ("text_config.hidden_size", -64, "hidden_size is -64"),
        ("text_config.hidden_size", 64.0, "hidden_size is 64.0"),
        ("text_config.hidden_size", "64", "hidden_size is '64'"),
        ("text_config.hidden_size", True, "hidden_size is True"),
        ("text_config.hidden_size", (1 << 22) + 1, "hidden_size is 4194305"),
        ("text_config.hidden_size", 10**400, "hidden_size is 10+"),
        ("text_config.num_hidden_layers", 1025, "num_hidden_layers is 1025"),
        ("text_config.num_local_experts", 4097, "num_local_experts is 4097"),
        ("text_config.num_local_experts", 1, "num_experts_per_tok 2 exceeds num_local_experts 1"),
        ("text_config.num_key_value_heads", 3, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ("text_config.head_dim", 15, "head_dim is 15; it must be even"),
        ("text_config.pad_token_id", 320, "pad_token_id is 320, outside the vocabulary of 320"),
        ("text_config.eos_token_id", [], "eos_token_id is \\[\\]"),
        ("text_config.eos_token_id", ["1"], "eos_token_id is '1'"),
        ("text_config.eos_token_id", [1, -6], "eos_token_id is -6"),
        ("text_config.eos_token_id", [1] * 65, "eos_token_id has 65 entries; at most 64"),
        ("text_config.rope_theta", 5.0, "rope_theta is 5.0 and rope_parameters.rope_theta is 10000.0; keep one"),
        ("text_config.rope_scaling", {}, "rope_parameters and rope_scaling contradict each other"),
        ("text_config.rope_scaling", 3, "rope_scaling is 3; it must be an object"),
        ("text_config.rms_norm_eps", 0, "rms_norm_eps is 0"),
        ("text_config.rms_norm_eps", float("nan"), "rms_norm_eps is nan"),
        ("text_config.final_logit_softcapping", float("inf"), "final_logit_softcapping is inf"),
        ("text_config.residual_gate_temperature", -0.3, "residual_gate_temperature is -0.3"),
        ("text_config.qk_scale_factor", "5", "qk_scale_factor is '5'"),
        ("text_config.output_multiplier", 10**400, "output_multiplier is 10+"),
        ("text_config.rope_parameters", [1], "rope_parameters is \\[1\\]; it must be an object"),
        ("text_config.rope_parameters", {"rope_type": "yarn", "factor": 4.0}, "rope_type is 'yarn'; only 'default'"),
        ("text_config.rope_parameters", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("text_config.rope_parameters", {"rope_theta": 0}, "rope_theta is 0"),
        ("text_config.layer_types", ["full_attention"], "layer_types must be a list of 2"),
        ("text_config.layer_types", ["full_attention", "linear_attention"], "layer_types must be a list of 2"),
        ("text_config.layer_types", "full_attention", "layer_types must be a list"),
        ("text_config.mlp_layer_types", [["dense"], "sparse"], "mlp_layer_types must be a list"),
        ("text_config.layer_rope_theta", 5, "layer_rope_theta must be a list of 2 numbers"),
        ("text_config.layer_rope_theta", [0, None], "layer_rope_theta must be"),
        ("text_config.layer_rope_theta", [0, 1, 2], "layer_rope_theta must be"),
        ("vision_config.hidden_act", "quick_gelu", "hidden_act is 'quick_gelu'"),
        ("vision_config.hidden_size", 36, "hidden_size 36 must divide into 2 heads of a multiple of 4"),
        ("vision_config.pos_emb_height", 31, "pos_emb_height 31 and pos_emb_width 32 must be equal"),
        ("vision_config.patch_temporal", 1, "patch_temporal is 1; only 2"),
        ("vision_config.rope_parameters", {"rope_type": "default"}, "rope_type is 'default'; only 'axial'"),
        ("vision_config.layer_types", ["window_attention"], "layer_types must be a list of 2"),
        ("vision_config.merge_size", 17, "merge_size is 17"),
        ("audio_config.out_hidden_size", 65, "out_hidden_size is 65; only 64"),
        ("audio_config.depths", 2, "depths is 2"),
        ("audio_config.depths", [-1], "depths is -1"),
        ("audio_config.depths", [0] * 17, "depths is .* list of 1 to 16"),
        ("audio_config.depths", [1, 1], "must have one entry per stage"),
        ("audio_config.num_hidden_layers", 2, "num_hidden_layers is 2; only 1"),
    ],
)
def test_a_field_that_cannot_be_run_is_refused_by_name(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("text_config.hidden_size", 1 << 22),
        ("text_config.num_hidden_layers", 1024),
        ("text_config.num_local_experts", 4096),
        ("text_config.pad_token_id", 319),
        ("text_config.max_position_embeddings", 10_485_760),
        ("vision_config.merge_size", 16),
        ("image_token_id", 0),
    ],
)
def test_the_last_value_within_each_limit_is_accepted(path: str, value: Any) -> None:
    data = changed(path, value)
    for name in ("layer_types", "layer_rope_theta", "mlp_layer_types"):
        del data["text_config"][name]
    del data["audio_config"], data["out_hidden_size"]
    ModelConfig.from_dict(data)


@pytest.mark.parametrize("value", [None, [], 3, "x"])
def test_something_other_than_an_object_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="model_type"):
        ModelConfig.from_dict(value)


FIELDS = [
    *(f"text_config.{name}" for name in TOY.to_dict()["text_config"]),
    *(f"vision_config.{name}" for name in TOY.to_dict()["vision_config"]),
    *(f"audio_config.{name}" for name in TOY.to_dict()["audio_config"]),
    *TOY.to_dict(),
]
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([0, 1, 2, 2**63]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "rope_theta", "x"]), inner)
    ),
    max_leaves=5,
)


@given(st.sampled_from(FIELDS), VALUES)
def test_any_value_in_any_field_is_a_config_or_a_config_error(path: str, value: Any) -> None:
    with contextlib.suppress(ConfigError):
        config = ModelConfig.from_dict(changed(path, value))
        assert ModelConfig.from_dict(config.to_dict()) == config


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "can't be read as JSON"),
            (b"\xff\xfe{}", "can't be read as JSON"),
            (b"[1]", "must be a JSON object"),
            (b'{"model_type":' * 100_000, "nested too deeply"),
            (b'{"model_type":"muse_spark","model_type":"x"}', "'model_type' appears twice"),
            (b'{"a":' + b"1" * 5000 + b"}", "can't be read as JSON"),
            (b" " * ((16 << 20) + 1), "larger than 16,777,216 bytes"),
        ],
    )
    def test_a_broken_file_is_refused_by_name(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match=f"config.json.*{message}"):
            ModelConfig.from_file(tmp_path / "config.json")

    def test_a_missing_file_a_folder_and_a_pipe_are_refused_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="does not exist"):
            ModelConfig.from_file(tmp_path / "config.json")
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path, tmp_path / "pipe"):
            with pytest.raises(ConfigError, match="not a regular file"):
                ModelConfig.from_file(path)


def test_an_unknown_preset_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"there is no preset 'gpt'; there are avocado-nano, .*muse-spark-nano, .*toy"
    ):
        preset("gpt")
