"""Counts and bytes: of the published model to the last parameter, of every preset as transformers has them."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from musespark.errors import ConfigError
from musespark.model.checkpoint import open_checkpoint, save_checkpoint
from musespark.model.config import ModelConfig
from musespark.model.presets import PRESETS, preset
from musespark.model.quantize import quantize_checkpoint
from musespark.model.size import Fit, KvCache, describe
from musespark.model.tensors import AUDIO_PREFIX, audio_tensors, expected_tensors
from tests.model.files import TOY, random_tensors, toy_config, transformers_model

OPEN = describe(preset("muse-spark-open"))


@pytest.mark.parametrize(
    "config", [*map(preset, PRESETS), toy_config(mlp_layer_types=["dense", "sparse"])], ids=[*PRESETS, "dense"]
)
def test_names_and_shapes_are_those_of_transformers(config: ModelConfig) -> None:
    with torch.device("meta"):
        state = transformers_model(config).state_dict()
    text_only = config.vision is None and config.tile_vision is None
    theirs = {n: tuple(tensor.shape) for n, tensor in state.items() if not (text_only and "vision" in n)}
    assert expected_tensors(config) == {n: shape for n, shape in theirs.items() if not n.startswith(AUDIO_PREFIX)}
    if config.audio is not None:
        audio = audio_tensors(config.audio, config.text.hidden_size)
        assert audio == {n: shape for n, shape in theirs.items() if n.startswith(AUDIO_PREFIX)}


# The published numbers of Muse-Spark-Open-816B-A42B.
@pytest.mark.parametrize(
    ("component", "count"),
    {
        "embed_tokens": 1_655_177_216,
        "lm_head": 1_655_177_216,
        "q_proj": 4_160_749_568,
        "gate_proj": 4_160_749_568,
        "o_proj": 4_160_749_568,
        "k_proj": 520_093_696,
        "v_proj": 520_093_696,
        "router": 130_023_424,
        "pre_expert_proj": 2_080_374_784,
        "post_expert_proj": 2_080_374_784,
        "experts_gate_up_proj": 532_575_944_704,
        "experts_down_proj": 266_287_972_352,
        "dense_mlp": 0,
        "vision_tower": 1_852_639_744,
        "vision_adapter": 41_943_040,
        "vision_projection": 33_554_432,
        "audio_tower": 117_840_384,
    }.items(),
)
def test_a_component_of_the_release_has_the_published_count(component: str, count: int) -> None:
    assert OPEN.parameters.components[component] == count


def test_the_sums_of_the_release_are_the_published_ones() -> None:
    parameters = OPEN.parameters
    assert parameters.total == 822_036_513_792
    assert parameters.buffers == 15_872
    assert parameters.total + parameters.buffers == 821_906_490_368 + 130_039_296  # BF16 + F32 elements in its files
    assert parameters.attention == 13_522_436_096
    assert parameters.experts == 798_863_917_056
    assert parameters.one_expert == 50_331_648
    assert parameters.text_body == 816_680_181_760
    assert parameters.active_body == 42_780_762_112
    assert parameters.active_experts == 24_964_497_408
    assert parameters.active_with_lm_head == 44_435_939_328
    assert sum(parameters.components.values()) == parameters.total


def test_bytes_of_the_release_are_those_of_its_files_less_the_headers() -> None:
    headers = 1_644_333_393_864 - OPEN.checkpoint_bytes["bf16"]
    assert OPEN.checkpoint_bytes["bf16"] == 2 * 821_906_490_368 + 4 * 130_039_296
    assert 1928 * 80 < headers < 1928 * 200  # what 1,928 tensors and more take in the JSON of 65 shards


def test_memory_is_what_the_files_hold_to_a_percent_but_for_the_audio_tower() -> None:
    """Of published shapes: those of tiny ones are mostly edges. Norms are float32, a last panel is filled up."""
    for name in ("muse-spark-open", "muse-glimmer-30b", "llama-4-scout", "llama-4-maverick"):
        report = describe(preset(name))
        audio = 2 * report.parameters.components["audio_tower"]
        for precision, stored in report.checkpoint_bytes.items():
            expected = stored - audio * (2 if precision == "float32" else 1)
            assert abs(report.loaded_bytes[precision] / expected - 1) < 0.01, (name, precision)


def test_kv_bytes_of_the_release_are_the_published_ones() -> None:
    kv = OPEN.kv_cache["bf16"]
    assert kv.bytes_per_layer_token == 4096
    assert kv.full_bytes_per_token == 65_536
    assert kv.full_bytes_per_token + kv.sliding_bytes_per_token == 253_952
    assert kv.largest_sliding_bytes == 368 << 20
    assert kv.size_bytes(1 << 20) == (64 << 30) + (368 << 20)
    assert kv.size_bytes(128 << 10) == (8 << 30) + (368 << 20)
    assert kv.size_bytes(100) == 100 * 253_952
    assert OPEN.kv_cache["float32"].size_bytes(5000) == 2 * kv.size_bytes(5000)


@pytest.mark.parametrize("name", ["muse-spark-nano", "toy", "toy-glimmer", "toy-llama4"])
def test_parameters_and_bytes_are_those_of_real_files(name: str, tmp_path: Path) -> None:
    config = preset(name)
    report = describe(config)
    theirs = transformers_model(config).named_parameters()
    without_audio = (p.numel() for n, p in theirs if not n.startswith(AUDIO_PREFIX))
    assert report.parameters.total == sum(without_audio)

    save_checkpoint(tmp_path / "float32", config, random_tensors(config))
    save_checkpoint(tmp_path / "bf16", config, random_tensors(config), dtype="BF16")
    quantize_checkpoint(tmp_path / "float32", tmp_path / "int8", bits=8)
    quantize_checkpoint(tmp_path / "float32", tmp_path / "int4", bits=4)
    assert len(report.checkpoint_bytes) == 4
    for precision in report.checkpoint_bytes:
        checkpoint = open_checkpoint(tmp_path / precision)
        stored = sum(checkpoint.tensor(tensor).data.nbytes for tensor in checkpoint.stored_names())
        assert report.checkpoint_bytes[precision] == stored


def test_nothing_is_allocated_and_64_bits_are_not_a_limit() -> None:
    tracemalloc.start()
    try:
        describe(preset("muse-spark-open"))
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    text = {"num_hidden_layers": 100, "num_local_experts": 4096, "moe_hidden_size": 1 << 20}
    huge = ModelConfig.from_dict(
        {"model_type": "muse_spark", "text_config": {**text, "moe_intermediate_size": 1 << 20}}
    )
    assert (
        describe(huge).parameters.experts == 3 * 100 * 4096 << 40
    )  # 2^60.2: in float32 more bytes than fit in 63 bits


def test_experts_count_only_in_sparse_layers() -> None:
    sparse, mixed = describe(TOY).parameters, describe(toy_config(mlp_layer_types=["dense", "sparse"])).parameters
    assert mixed.experts * 2 == sparse.experts
    assert mixed.components["dense_mlp"] == 3 * 64 * 96
    dense = describe(toy_config(mlp_layer_types=["dense", "dense"])).parameters
    assert (dense.experts, dense.one_expert, dense.active_experts) == (0, 0, 0)
    assert dense.active_body == dense.text_body


# The published and computed numbers of muse.md and llama4.md: total, with head active per token, and parts.
@pytest.mark.parametrize(
    ("name", "total", "active", "components"),
    [
        (
            "muse-glimmer-30b",
            29_776_626_688,
            26_509_949_440,  # published as the text with its embedding, which is as large as the head
            {
                "lm_head": 1_344_831_488,
                "vision_tower": 1_852_639_744,
                "vision_adapter": 41_943_040,
                "vision_projection": 27_262_976,
            },
        ),
        (
            "llama-4-scout",
            108_641_793_536,
            16_138_408_960,
            {
                "vision_projection": 20_971_520,
                "embed_tokens": 1_034_485_760,
                "lm_head": 1_034_485_760,
                "shared_experts": 6_039_797_760,
                "dense_mlp": 0,
                "router": 3_932_160,
                "norms_and_gates": 496_640,
            },
        ),
        (
            "llama-4-maverick",
            401_583_781_376,
            16_150_205_440,
            {"shared_experts": 3_019_898_880, "dense_mlp": 6_039_797_760, "router": 15_728_640},
        ),
    ],
)
def test_counts_of_other_releases_are_the_published_ones(
    name: str, total: int, active: int, components: dict[str, int]
) -> None:
    parameters = describe(preset(name)).parameters
    assert parameters.total == total
    assert parameters.active_with_lm_head == active
    assert {part: parameters.components[part] for part in components} == components


def test_parts_of_llama_4_are_the_published_ones() -> None:
    scout, maverick = (describe(preset(name)).parameters for name in ("llama-4-scout", "llama-4-maverick"))
    assert scout.attention == maverick.attention == 3_019_898_880
    assert (scout.experts, maverick.experts) == (96_636_764_160, 386_547_056_640)
    assert scout.one_expert == maverick.one_expert == 125_829_120
    assert scout.components["vision_tower"] + scout.components["vision_adapter"] == 850_960_896
    assert scout.active_with_lm_head + scout.components["embed_tokens"] == 17_172_894_720


def test_sizes_between_are_what_their_names_say() -> None:
    mini, large = (describe(preset(name)) for name in ("muse-spark-mini", "muse-spark-400b"))
    assert round(mini.parameters.total / 1e9, 1) == 3.0
    assert round(large.parameters.total / 1e9) == 400
    assert large.context_tokens == 10_485_760
    assert describe(preset("avocado-nano")).parameters.components["vision_tower"] == 0


def test_kv_bytes_of_other_releases_are_the_published_ones() -> None:
    glimmer, scout = (describe(preset(name)).kv_cache["bf16"] for name in ("muse-glimmer-30b", "llama-4-scout"))
    assert (glimmer.full_bytes_per_token, glimmer.largest_sliding_bytes) == (13_312, 78 << 20)
    assert glimmer.full_bytes_per_token * 131_072 == 1664 << 20  # 1.625 GiB
    assert scout.full_bytes_per_token == 49_152
    assert scout.full_bytes_per_token + scout.sliding_bytes_per_token == 196_608
    assert scout.size_bytes(10_485_760) == (480 << 30) + (1152 << 20)


class TestFlops:
    @pytest.mark.parametrize(
        ("name", "experts"), [("toy", {"num_experts_per_tok": 4}), ("toy-glimmer", {}), ("toy-llama4", {"E": 1})]
    )
    def test_operations_for_one_token_are_those_that_torch_counts_in_transformers(
        self, name: str, experts: dict[str, int]
    ) -> None:
        """Every expert is picked here: transformers' Llama 4 computes all of them whatever the choice."""
        data = PRESETS[name]
        text = data["text_config"] | ({"num_local_experts": experts["E"]} if "E" in experts else experts)
        config = ModelConfig.from_dict({**data, "text_config": text})
        model = transformers_model(config).eval()
        model.config.text_config._experts_implementation = "eager"  # torch does not count the grouped one
        model.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=torch.tensor([[40]]))
        flops = describe(config, context_tokens=1).flops_per_token
        assert flops.weights + flops.attention == counter.get_total_flops()

    def test_local_layers_stop_costing_more_at_their_window_or_chunk(self) -> None:
        def num_keys(name: str, tokens: int) -> int:
            text = preset(name).text
            attention = describe(preset(name), context_tokens=tokens).flops_per_token.attention
            return attention // (4 * text.num_attention_heads * text.head_dim)

        assert num_keys("muse-spark-open", 2048) == 62 * 2048
        assert num_keys("muse-spark-open", 2049) == 16 * 2049 + 46 * 2048
        assert num_keys("llama-4-scout", 8192) == 48 * 8192
        assert num_keys("llama-4-scout", 8193) == 12 * 8193 + 36 * 1  # the first token of a chunk sees itself only


def test_a_precision_that_the_widths_do_not_allow_is_absent() -> None:
    assert describe(toy_config(moe_intermediate_size=44)).loaded_bytes.keys() == {"float32", "bf16"}


class TestFits:
    def fit(self, memory_bytes: int, context_tokens: int | None = None) -> dict[str, Fit]:
        report = describe(preset("muse-spark-open"), memory_bytes=memory_bytes, context_tokens=context_tokens)
        return {fit.precision: fit for fit in report.fits}

    def test_the_memory_is_enough_to_the_byte(self) -> None:
        need = OPEN.loaded_bytes["int8"] + OPEN.kv_cache["bf16"].size_bytes(1000)
        assert self.fit(need, 1000)["int8"].fits
        assert not self.fit(need - 1, 1000)["int8"].fits
        assert self.fit(need, 1000)["int4"].fits
        assert not self.fit(need, 1000)["bf16"].fits

    def test_the_longest_context_fits_and_one_token_more_does_not(self) -> None:
        for tokens in (1, 2047, 2048, 2049, 500_000):
            need = OPEN.loaded_bytes["int4"] + OPEN.kv_cache["bf16"].size_bytes(tokens)
            assert self.fit(need)["int4"].longest_context == tokens
            assert self.fit(need - 1)["int4"].longest_context == tokens - 1

    def test_the_longest_context_is_0_without_room_and_never_beyond_the_model(self) -> None:
        assert self.fit(0)["int4"].longest_context == 0
        assert self.fit(1 << 50)["int4"].longest_context == 1_048_576

    def test_without_full_layers_only_the_window_costs(self) -> None:
        kv = KvCache(bytes_per_layer_token=8, num_full_layers=0, num_sliding_layers=2, sliding_window=10)
        assert kv.size_bytes(1000) == 160
        assert kv.longest_context(159) == 9
        assert kv.longest_context(160) == (1 << 63) - 1

    def test_numbers_out_of_range_are_refused(self) -> None:
        for tokens in (0, -1, 1_048_577):
            with pytest.raises(ConfigError, match="out of range; this model takes 1 to 1,048,576"):
                self.fit(1 << 40, tokens)
        with pytest.raises(ConfigError, match="memory of -1 bytes"):
            self.fit(-1)


def test_the_report_is_plain_json() -> None:
    report = json.loads(json.dumps(describe(preset("muse-spark-open"), memory_bytes=1 << 40).to_dict()))
    assert report["parameters"]["text_body"] == 816_680_181_760
    assert report["kv_cache"]["bf16"]["full_bytes_per_token"] == 65_536
    assert [fit["precision"] for fit in report["fits"]] == ["float32", "bf16", "int8", "int4"]
