"""GGUF files read back with the published package: every tensor, every number, every token against the checkpoint."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from musespark.chat.ranks import SPLIT_PATTERN
from musespark.chat.tokenizer import Tokenizer
from musespark.errors import CheckpointError, ConfigError
from musespark.model.checkpoint import BUNDLED, open_checkpoint, save_checkpoint
from musespark.model.config import ModelConfig, RopeScaling, TextConfig
from musespark.model.gguf import GgufType, convert_to_gguf
from musespark.model.gguf_families import refuse_unknown, rope_factors
from musespark.model.gguf_vocab import splitter
from musespark.model.presets import PRESETS, preset
from musespark.model.quantize import quantize_checkpoint
from musespark.training.tokenizer import SPLIT
from tests.model.files import random_tensors

QUANTISED: tuple[GgufType, ...] = ("q8_0", "q4_0")


def changed(name: str, **text: Any) -> ModelConfig:
    data = PRESETS[name]
    return ModelConfig.from_dict({**data, "text_config": {**data["text_config"], **text}})


# llama.cpp's chunk and temperature; widths in whole blocks of 32.
LLAMA4 = changed("toy-llama4", attention_chunk_size=8192, floor_scale=8192, intermediate_size=32)
GLIMMER = changed("toy-glimmer", num_hidden_layers=5)


def saved(folder: Path, config: ModelConfig, tokenizer: Path | None = None) -> Path:
    """A float32 checkpoint of random weights that can be rounded to anything; over bytes, without a tokenizer."""
    if tokenizer is None:
        tokenizer = folder.with_name("tokenizer.json")
        Tokenizer.bytes_only().save(tokenizer)
    save_checkpoint(folder, config, random_tensors(config), files={"tokenizer.json": tokenizer})
    return folder


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Name -> float32 values in numpy's order, key -> value."""
    reader = gguf.GGUFReader(path)
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        tensors[tensor.name] = values.reshape(tensor.shape[::-1].tolist())
    return tensors, {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def llama4_by_hand(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """llama.cpp's names and layouts, written down from its table of tensors."""
    body, config = "language_model.model.", LLAMA4.text
    expected = {
        "token_embd.weight": tensors[f"{body}embed_tokens.weight"],
        "output.weight": tensors["language_model.lm_head.weight"],
        "output_norm.weight": tensors[f"{body}norm.weight"],
    }
    for i in range(config.num_hidden_layers):
        ours, b = f"{body}layers.{i}.", f"blk.{i}."
        expected |= {
            f"{b}attn_norm.weight": tensors[f"{ours}input_layernorm.weight"],
            f"{b}attn_q.weight": tensors[f"{ours}self_attn.q_proj.weight"],
            f"{b}attn_k.weight": tensors[f"{ours}self_attn.k_proj.weight"],
            f"{b}attn_v.weight": tensors[f"{ours}self_attn.v_proj.weight"],
            f"{b}attn_output.weight": tensors[f"{ours}self_attn.o_proj.weight"],
            f"{b}ffn_norm.weight": tensors[f"{ours}post_attention_layernorm.weight"],
        }
        if i % 2 == 0:  # interleave_moe_layer_step 2: the odd ones are sparse
            for part in ("gate", "up", "down"):
                expected[f"{b}ffn_{part}.weight"] = tensors[f"{ours}feed_forward.{part}_proj.weight"]
            continue
        gate_up = tensors[f"{ours}feed_forward.experts.gate_up_proj"].transpose(0, 2, 1)
        expected |= {
            f"{b}ffn_gate_inp.weight": tensors[f"{ours}feed_forward.router.weight"],
            f"{b}ffn_gate_exps.weight": gate_up[:, : config.moe_intermediate_size],
            f"{b}ffn_up_exps.weight": gate_up[:, config.moe_intermediate_size :],
            f"{b}ffn_down_exps.weight": tensors[f"{ours}feed_forward.experts.down_proj"].transpose(0, 2, 1),
        }
        for part in ("gate", "up", "down"):
            expected[f"{b}ffn_{part}_shexp.weight"] = tensors[f"{ours}feed_forward.shared_expert.{part}_proj.weight"]
    return expected


def neighbours(matrix: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of every head from (first half, second half) to pairs of neighbours."""
    heads = matrix.reshape(-1, head_dim, matrix.shape[1])
    mixed = np.empty_like(heads)
    mixed[:, 0::2], mixed[:, 1::2] = heads[:, : head_dim // 2], heads[:, head_dim // 2 :]
    return mixed.reshape(matrix.shape)


def glimmer_by_hand(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    body, head_dim = "model.language_model.", GLIMMER.text.head_dim
    one = np.float32(1)
    expected = {
        "token_embd.weight": tensors[f"{body}embed_tokens.weight"],
        "output.weight": tensors["lm_head.weight"],
        "output_norm.weight": tensors[f"{body}norm.weight"],
    }
    for i in range(GLIMMER.text.num_hidden_layers):
        ours, b = f"{body}layers.{i}.", f"blk.{i}."
        expected |= {
            f"{b}attn_norm.weight": tensors[f"{ours}input_layernorm.weight"] + one,
            f"{b}post_attention_norm.weight": tensors[f"{ours}post_attention_layernorm.weight"] + one,
            f"{b}ffn_norm.weight": tensors[f"{ours}pre_feedforward_layernorm.weight"] + one,
            f"{b}post_ffw_norm.weight": tensors[f"{ours}post_feedforward_layernorm.weight"] + one,
            f"{b}attn_q.weight": neighbours(tensors[f"{ours}self_attn.q_proj.weight"], head_dim),
            f"{b}attn_k.weight": neighbours(tensors[f"{ours}self_attn.k_proj.weight"], head_dim),
            f"{b}attn_v.weight": tensors[f"{ours}self_attn.v_proj.weight"],
            f"{b}attn_gate.weight": tensors[f"{ours}self_attn.gate_proj.weight"],
            f"{b}attn_output.weight": tensors[f"{ours}self_attn.o_proj.weight"],
            f"{b}attn_q_norm.weight": np.full(head_dim, GLIMMER.text.qk_scale_factor, np.float32),
            f"{b}attn_k_norm.weight": np.ones(head_dim, np.float32),
        }
        for part in ("gate", "up", "down"):
            expected[f"{b}ffn_{part}.weight"] = tensors[f"{ours}mlp.{part}_proj.weight"]
    return expected


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


class TestTensors:
    def test_of_llama4_are_those_of_the_source_in_the_layout_of_llama_cpp(self, tmp_path: Path) -> None:
        convert_to_gguf(saved(tmp_path / "toy", LLAMA4), tmp_path / "toy.gguf", type="f32")
        found, _ = read(tmp_path / "toy.gguf")
        del found["rope_freqs.weight"]  # has a test of its own
        assert_equal(found, llama4_by_hand(random_tensors(LLAMA4)))

    def test_of_muse_glimmer_are_those_of_the_source_in_the_layout_of_llama_cpp(self, tmp_path: Path) -> None:
        convert_to_gguf(saved(tmp_path / "toy", GLIMMER), tmp_path / "toy.gguf", type="f32")
        found, _ = read(tmp_path / "toy.gguf")
        assert_equal(found, glimmer_by_hand(random_tensors(GLIMMER)))

    def test_of_unfused_experts_are_the_same(self, tmp_path: Path) -> None:
        from musespark.model.convert import convert_to_hf

        saved(tmp_path / "fused", LLAMA4)
        convert_to_hf(tmp_path / "fused", tmp_path / "unfused", experts="unfused")
        for name in ("fused", "unfused"):
            convert_to_gguf(tmp_path / name, tmp_path / f"{name}.gguf", type="q8_0")
        assert_equal(read(tmp_path / "fused.gguf")[0], read(tmp_path / "unfused.gguf")[0])

    @pytest.mark.parametrize("type", ["bf16", *QUANTISED])
    def test_in_a_smaller_type_are_as_the_package_rounds_them(self, tmp_path: Path, type: GgufType) -> None:
        convert_to_gguf(saved(tmp_path / "toy", GLIMMER), tmp_path / "toy.gguf", type=type)
        found, numbers = read(tmp_path / "toy.gguf")
        for name, values in glimmer_by_hand(random_tensors(GLIMMER)).items():
            kind = "f32" if values.ndim == 1 else "q8_0" if (type, name) == ("q4_0", "token_embd.weight") else type
            ggml = gguf.GGMLQuantizationType[kind.upper()]
            expected = gguf.quants.dequantize(gguf.quants.quantize(values, ggml), ggml)
            np.testing.assert_array_equal(found[name], expected, err_msg=name)
        assert numbers["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{type.upper()}"]

    @pytest.mark.parametrize(("bits", "type"), [(8, "q8_0"), (4, "q4_0")])
    @pytest.mark.parametrize("group", [32, 64])
    def test_of_integers_of_the_same_width_are_not_rounded_again(
        self, tmp_path: Path, bits: Any, type: GgufType, group: int
    ) -> None:
        config = changed("toy-glimmer", intermediate_size=128)
        small = {name: array * np.float32(0.05) for name, array in random_tensors(config).items()}
        Tokenizer.bytes_only().save(tmp_path / "tokenizer.json")
        files = {"tokenizer.json": tmp_path / "tokenizer.json"}
        save_checkpoint(tmp_path / "float", config, small, files=files)
        quantize_checkpoint(tmp_path / "float", tmp_path / "integers", bits=bits, group_size=group)
        convert_to_gguf(tmp_path / "integers", tmp_path / "toy.gguf", type=type)
        found, _ = read(tmp_path / "toy.gguf")
        weight = open_checkpoint(tmp_path / "integers").weight
        layer = "model.language_model.layers.1."
        np.testing.assert_array_equal(found["output.weight"], weight("lm_head.weight").float32())
        np.testing.assert_array_equal(found["blk.1.ffn_down.weight"], weight(f"{layer}mlp.down_proj.weight").float32())
        keys = weight(f"{layer}self_attn.k_proj.weight").float32()
        np.testing.assert_array_equal(found["blk.1.attn_k.weight"], neighbours(keys, config.text.head_dim))

    def test_of_integers_whose_scales_float16_cannot_hold_exactly_are_rounded_again(self, tmp_path: Path) -> None:
        """Scales of about 2e-6 are below float16's normal numbers and lose digits there."""
        config = changed("toy-glimmer", intermediate_size=128)
        tiny = {name: array * np.float32(1e-4) for name, array in random_tensors(config).items()}
        Tokenizer.bytes_only().save(tmp_path / "tokenizer.json")
        save_checkpoint(tmp_path / "float", config, tiny, files={"tokenizer.json": tmp_path / "tokenizer.json"})
        quantize_checkpoint(tmp_path / "float", tmp_path / "integers", bits=8, group_size=32)
        convert_to_gguf(tmp_path / "integers", tmp_path / "toy.gguf", type="q8_0")
        values = open_checkpoint(tmp_path / "integers").weight("lm_head.weight").float32()
        stored = next(t for t in gguf.GGUFReader(tmp_path / "toy.gguf").tensors if t.name == "output.weight")
        np.testing.assert_array_equal(stored.data, gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0))

    @pytest.mark.parametrize("type", QUANTISED)
    def test_with_a_nan_cannot_be_rounded(self, tmp_path: Path, type: GgufType) -> None:
        tensors = random_tensors(GLIMMER)
        tensors["lm_head.weight"][3, 4] = np.nan
        Tokenizer.bytes_only().save(tmp_path / "tokenizer.json")
        save_checkpoint(tmp_path / "toy", GLIMMER, tensors, files={"tokenizer.json": tmp_path / "tokenizer.json"})
        with pytest.raises(CheckpointError, match=r"output\.weight holds NaN or infinity"):
            convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf", type=type)
        assert not list(tmp_path.glob("*.gguf*"))

    def test_whose_rows_are_not_whole_blocks_cannot_be_rounded(self, tmp_path: Path) -> None:
        saved(tmp_path / "toy", changed("toy-glimmer", intermediate_size=80))
        with pytest.raises(CheckpointError, match=r"ffn_down\.weight has 80 inputs; q8_0 needs a multiple of 32"):
            convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf", type="q8_0")
        convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf", type="bf16")


def test_scout_stretches_the_frequencies_below_one_turn_in_8192_by_16() -> None:
    """theta 500,000 and 64 pairs: the wavelength 2 pi theta^(i/64) reaches 8192 between i = 34 and 35."""
    text, scaling = preset("llama-4-scout").text, preset("llama-4-scout").text.rope_scaling
    assert scaling is not None
    assert rope_factors(text, scaling).tolist() == [1.0] * 35 + [16.0] * 29


def test_between_the_two_factors_frequencies_are_mixed() -> None:
    """One pair alone, of wavelength 2 pi: it turns 10 times in 20 pi, halfway from 5 to 15 and so half of each."""
    scaling = RopeScaling(8.0, 5.0, 15.0, 63)  # 63 / (2 pi) = 10.03
    (factor,) = rope_factors(TextConfig(head_dim=2), scaling).tolist()
    fast = (63 / (2 * np.pi) - 5) / 10
    assert factor == pytest.approx(1 / ((1 - fast) / 8 + fast))


class TestMetadata:
    def test_of_llama4(self, tmp_path: Path) -> None:
        convert_to_gguf(saved(tmp_path / "toy", LLAMA4), tmp_path / "toy.gguf", type="f32")
        _, found = read(tmp_path / "toy.gguf")
        expected = {
            "general.architecture": "llama4",
            "general.name": "toy",
            "general.file_type": 0,
            "llama4.block_count": 4,
            "llama4.context_length": 1024,
            "llama4.embedding_length": 64,
            "llama4.feed_forward_length": 96,
            "llama4.expert_feed_forward_length": 32,
            "llama4.attention.head_count": 4,
            "llama4.attention.head_count_kv": 2,
            "llama4.attention.key_length": 16,
            "llama4.attention.value_length": 16,
            "llama4.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
            "llama4.rope.dimension_count": 16,
            "llama4.rope.freq_base": 10_000.0,
            "llama4.expert_count": 4,
            "llama4.expert_used_count": 1,
            "llama4.interleave_moe_layer_step": 2,
            "llama4.vocab_size": 320,
        }
        assert {key: value for key, value in found.items() if not key.startswith("tokenizer.")} == expected

    def test_of_muse_glimmer(self, tmp_path: Path) -> None:
        convert_to_gguf(saved(tmp_path / "toy", GLIMMER), tmp_path / "toy.gguf", type="f32")
        _, found = read(tmp_path / "toy.gguf")
        assert found["general.architecture"] == "muse-glimmer"
        own = {key.removeprefix("muse-glimmer."): value for key, value in found.items()}
        assert own["attention.sliding_window"] == 128
        assert own["attention.sliding_window_pattern"] == [False, True, True, True, False]
        assert own["logit_scale"] == 1.0
        assert own["final_logit_softcapping"] == 20.0
        assert own["rope.freq_base"] == 10_000.0


class TestVocabulary:
    def test_tokens_types_merges_and_control_tokens(self, tmp_path: Path) -> None:
        config = changed("toy-glimmer", vocab_size=16_400)  # 16 more than the tokenizer has
        convert_to_gguf(saved(tmp_path / "toy", config, BUNDLED / "tokenizer.json"), tmp_path / "toy.gguf")
        _, found = read(tmp_path / "toy.gguf")
        source = json.loads((BUNDLED / "tokenizer.json").read_text())
        tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
        by_id = {i: name for name, i in source["model"]["vocab"].items()}
        by_id |= {token["id"]: token["content"] for token in source["added_tokens"]}
        assert tokens == [by_id.get(i, f"[PAD{i}]") for i in range(16_400)]
        control = {token["id"] for token in source["added_tokens"]}
        assert types == [3 if i in control else 1 if i in by_id else 5 for i in range(16_400)]
        assert found["tokenizer.ggml.merges"] == [" ".join(merge) for merge in source["model"]["merges"]]
        ids = {name: found[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding", "eot", "eom")}
        assert ids == {"bos": 0, "eos": 1, "padding": 5, "eot": 6, "eom": 4}
        assert found["tokenizer.ggml.model"] == "gpt2"
        assert found["tokenizer.ggml.pre"] == "granite-embed-multi-97m"
        assert found["tokenizer.ggml.add_bos_token"] is True

    def test_the_chat_template_of_the_folder_goes_along(self, tmp_path: Path) -> None:
        (saved(tmp_path / "toy", GLIMMER) / "chat_template.jinja").write_text("{{ messages }}")
        convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf")
        assert read(tmp_path / "toy.gguf")[1]["tokenizer.chat_template"] == "{{ messages }}"

    def test_a_tokenizer_that_is_larger_than_the_vocabulary_is_refused(self, tmp_path: Path) -> None:
        saved(tmp_path / "toy", GLIMMER, BUNDLED / "tokenizer.json")
        with pytest.raises(CheckpointError, match=r"ids up to 16,383, but the vocabulary of config\.json ends at 320"):
            convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf")

    @pytest.mark.parametrize(
        ("pattern", "merges", "named"),
        [
            (SPLIT_PATTERN, [["a", "b"]], True),
            (SPLIT_PATTERN, [["1", "2"]], True),
            (SPLIT, [["a", "b"]], True),
            (SPLIT, [["1", "2"]], False),  # llama.cpp would offer the two digits together
            (r"\w+", [["a", "b"]], False),
            (r"\w+", [], True),  # single bytes, however the text is split
        ],
    )
    def test_only_a_split_that_llama_cpp_has_is_named(self, pattern: str, merges: list[list[str]], named: bool) -> None:
        description = json.loads(json.dumps(Tokenizer.bytes_only().description))
        description["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        }
        description["model"]["merges"] = merges
        description["model"]["vocab"] |= {"".join(merge): 300 + i for i, merge in enumerate(merges)}
        tokenizer = Tokenizer(description, "this tokenizer")
        if named:
            assert splitter(tokenizer) == "granite-embed-multi-97m"
        else:
            with pytest.raises(CheckpointError, match=r"llama\.cpp has no pre-tokenizer that splits text by "):
                splitter(tokenizer)


class TestWhatLlamaCppCannotRunIsRefused:
    @pytest.mark.parametrize("name", ["llama-4-scout", "llama-4-maverick", "muse-glimmer-30b", "toy-glimmer"])
    def test_published_models_are_not(self, name: str) -> None:
        refuse_unknown(preset(name))

    @pytest.mark.parametrize("name", ["muse-spark-nano", "muse-spark-open"])
    def test_another_family_is_named(self, name: str) -> None:
        with pytest.raises(ConfigError, match=r"llama\.cpp doesn't know muse_spark.* it knows llama4 and muse_glimmer"):
            refuse_unknown(preset(name))

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ({"attention_chunk_size": 512, "max_position_embeddings": 512}, None),
            ({"attention_chunk_size": 512, "max_position_embeddings": 513}, "attention_chunk_size is 512"),
            ({"attention_chunk_size": 16_384, "max_position_embeddings": 8192}, None),
            ({"attention_chunk_size": 16_384, "max_position_embeddings": 8193}, "attention_chunk_size is 16,384"),
            ({"floor_scale": 100, "max_position_embeddings": 99}, None),
            ({"floor_scale": 100, "max_position_embeddings": 100}, "floor_scale 100"),
            ({"attn_scale": 0.2, "max_position_embeddings": 8191}, None),
            ({"attn_scale": 0.2, "max_position_embeddings": 8192}, "attn_scale 0.2"),
            ({"attn_temperature_tuning": False, "max_position_embeddings": 8191}, None),
            ({"attn_temperature_tuning": False, "max_position_embeddings": 8192}, "attn_temperature_tuning False"),
            ({"no_rope_layer_interval": 2}, "every 4th layer full"),
            ({"num_hidden_layers": 3}, "num_hidden_layers is 3, and it needs a full layer"),
            ({"use_qk_norm": False}, "use_qk_norm is False with 4 experts"),
            ({"use_qk_norm": False, "num_local_experts": 128}, None),
            ({"num_local_experts": 128}, "use_qk_norm is True with 128 experts"),
            ({"moe_layers": [0, 1]}, "mlp_layer_types"),
            ({"moe_layers": [3]}, None),
        ],
    )
    def test_a_llama4_that_differs_from_what_its_source_takes_for_granted(
        self, text: dict[str, Any], problem: str | None
    ) -> None:
        config = changed("toy-llama4", **{"attention_chunk_size": 8192, "floor_scale": 8192} | text)
        if problem is None:
            refuse_unknown(config)
        else:
            with pytest.raises(ConfigError, match=problem):
                refuse_unknown(config)

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ({"layer_rope_theta": [1, 1]}, "layer_rope_theta"),
            ({"post_norm_eps": 1e-5}, "post_norm_eps is 1e-05"),
            ({"num_hidden_layers": 1}, "layer_types has no sliding_attention"),
        ],
    )
    def test_a_muse_glimmer_that_differs_too(self, text: dict[str, Any], problem: str) -> None:
        with pytest.raises(ConfigError, match=problem):
            refuse_unknown(changed("toy-glimmer", **text))


class TestAppearsWholeOrNotAtAll:
    def test_only_a_gguf_file_is_replaced(self, tmp_path: Path) -> None:
        saved(tmp_path / "toy", GLIMMER)
        (tmp_path / "notes.txt").write_text("mine")
        for target in (tmp_path / "notes.txt", tmp_path / "toy"):
            with pytest.raises(CheckpointError, match="exists and is not a GGUF file"):
                convert_to_gguf(tmp_path / "toy", target)
        assert (tmp_path / "notes.txt").read_text() == "mine"
        for type in ("f32", "bf16"):
            convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf", type=type)
        assert read(tmp_path / "toy.gguf")[1]["general.file_type"] == 32

    def killed(self, tmp_path: Path, how: str = "SIGKILL") -> bytes:
        """A conversion of `toy` to f32 that a signal ends after half of the bytes; what it had written."""
        script = f"""
import os, signal
from musespark.model.gguf import convert_to_gguf
def progress(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.{how})
convert_to_gguf({str(tmp_path / "toy")!r}, {str(tmp_path / "toy.gguf")!r}, type="f32", progress=progress)
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == -getattr(signal, how), done.stderr
        return (tmp_path / ".toy.gguf.writing").read_bytes()

    def going_on(self, tmp_path: Path, type: GgufType = "f32") -> tuple[int, int]:
        """The first number of bytes that the next run reports, and all of them."""
        seen: list[tuple[int, int]] = []
        convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf", type=type, progress=lambda *now: seen.append(now))
        assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".json") == ["toy", "toy.gguf"]
        return seen[0]

    @pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
    def test_after_a_kill_or_ctrl_c_the_same_command_goes_on_from_the_last_whole_tensor(
        self, tmp_path: Path, how: str
    ) -> None:
        saved(tmp_path / "toy", GLIMMER)
        convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf", type="f32")
        whole = (tmp_path / "toy.gguf").read_bytes()
        convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf", type="bf16")
        old = (tmp_path / "toy.gguf").read_bytes()
        left = self.killed(tmp_path, how)
        assert (tmp_path / "toy.gguf").read_bytes() == old
        # A flipped bit in what is kept is still there afterwards: it was not written again.
        kept = bytearray(left)
        kept[len(left) // 4] ^= 1
        (tmp_path / ".toy.gguf.writing").write_bytes(kept + b"half a tensor")
        first, total = self.going_on(tmp_path)
        assert first > total * 0.4
        found = bytearray((tmp_path / "toy.gguf").read_bytes())
        assert found != whole
        found[len(left) // 4] ^= 1
        assert found == whole

    @pytest.mark.parametrize("change", ["type", "source", "no notes", "cut notes", "cut file"])
    def test_another_conversion_keeps_nothing_of_a_killed_one(self, tmp_path: Path, change: str) -> None:
        saved(tmp_path / "toy", GLIMMER)
        self.killed(tmp_path)
        notes = tmp_path / ".toy.gguf.plan"
        type: GgufType = "bf16" if change == "type" else "f32"
        if change == "source":
            (tmp_path / "toy" / "tokenizer.json").touch()
        elif change == "no notes":
            notes.unlink()
        elif change == "cut notes":
            notes.write_text(notes.read_text()[:100])
        elif change == "cut file":
            (tmp_path / ".toy.gguf.writing").write_bytes(b"GGUF")
        first, total = self.going_on(tmp_path, type)
        assert first < total * 0.4
        convert_to_gguf(tmp_path / "toy", tmp_path / "again.gguf", type=type)
        assert (tmp_path / "toy.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()

    def test_a_note_that_was_cut_off_counts_for_nothing(self, tmp_path: Path) -> None:
        saved(tmp_path / "toy", GLIMMER)
        self.killed(tmp_path)
        notes = tmp_path / ".toy.gguf.plan"
        notes.write_text(notes.read_text()[:-2])
        self.going_on(tmp_path)
        convert_to_gguf(tmp_path / "toy", tmp_path / "again.gguf", type="f32")
        assert (tmp_path / "toy.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()

    def test_a_file_inside_its_source_goes_on_too(self, tmp_path: Path) -> None:
        saved(tmp_path / "toy", GLIMMER)
        target = tmp_path / "toy" / "toy.gguf"

        def interrupt(done: int, total: int) -> None:
            if done > total // 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert_to_gguf(tmp_path / "toy", target, progress=interrupt)
        seen: list[tuple[int, int]] = []
        convert_to_gguf(tmp_path / "toy", target, progress=lambda *now: seen.append(now))
        assert seen[0][0] > seen[0][1] * 0.4

    def test_a_full_disk_leaves_the_old_file_and_nothing_else(self, tmp_path: Path) -> None:
        convert_to_gguf(saved(tmp_path / "toy", GLIMMER), tmp_path / "toy.gguf", type="bf16")
        old = (tmp_path / "toy.gguf").read_bytes()
        script = f"""
from musespark.model.gguf import convert_to_gguf
convert_to_gguf({str(tmp_path / "toy")!r}, {str(tmp_path / "toy.gguf")!r}, type="f32")
"""

        def no_large_files() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=no_large_files)
        assert (tmp_path / "toy.gguf").read_bytes() == old
        assert "toy.gguf can't be written: File too large" in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "toy", "toy.gguf"]

    def test_progress_counts_bytes_up_to_all(self, tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []
        convert_to_gguf(
            saved(tmp_path / "toy", GLIMMER), tmp_path / "toy.gguf", progress=lambda *counts: seen.append(counts)
        )
        assert seen[-1][0] == pytest.approx(seen[-1][1], abs=32)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1][1] < (tmp_path / "toy.gguf").stat().st_size
