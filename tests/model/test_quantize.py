"""Quantising a checkpoint: close to the original, in the published layout, whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from musespark.errors import CheckpointError
from musespark.model.checkpoint import Plain, Quantized, open_checkpoint, save_checkpoint
from musespark.model.pack_quantized import Bits, dequantize
from musespark.model.presets import preset
from musespark.model.quantize import default_group_size, quantize_checkpoint, round_to_groups
from musespark.model.tensors import is_quantizable
from tests.model.files import TOY, random_tensors, saved_toy, toy_config, write_stored


def bfloat16(array: np.ndarray) -> np.ndarray:
    return torch.from_numpy(array).bfloat16().float().numpy()


@pytest.mark.parametrize("bits", [8, 4])
def test_every_weight_is_within_half_a_step_of_the_original(tmp_path: Path, bits: Bits) -> None:
    saved_toy(tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "small", bits=bits, group_size=16)
    checkpoint = open_checkpoint(tmp_path / "small")
    largest = {8: 127, 4: 7}[bits]
    for name, original in random_tensors().items():
        weight = checkpoint.weight(name)
        if not is_quantizable(name):
            assert isinstance(weight, Plain)
            continue
        assert isinstance(weight, Quantized)
        assert (weight.bits, weight.group_size) == (bits, 16)
        assert np.abs(weight.packed).max() == largest
        # Half a step, and for the largest of a group what rounding the scale to bfloat16 (2^-9) clips off.
        step = np.abs(original).reshape(*weight.scales.shape, 16).max(axis=-1) / largest
        limit = np.repeat(step * (0.5 + largest * 2.0**-8), 16, axis=-1)
        assert (np.abs(weight.float32() - original) <= limit).all()


def test_what_is_not_a_text_matrix_stays_a_float(tmp_path: Path) -> None:
    saved_toy(tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "small")
    checkpoint = open_checkpoint(tmp_path / "small")
    kept = {name: array for name, array in random_tensors().items() if isinstance(checkpoint.weight(name), Plain)}
    assert {"model.language_model.embed_tokens.weight", "model.vision_projection.weight"} <= kept.keys()
    assert "lm_head.weight" not in kept
    for name, original in kept.items():
        router = name.endswith((".mlp.gate.weight", ".mlp.gate.e_score_correction_bias"))
        assert checkpoint.tensor(name).dtype == ("F32" if router else "BF16")
        np.testing.assert_array_equal(checkpoint.weight(name).float32(), original if router else bfloat16(original))


def test_the_file_has_the_tensors_that_other_engines_look_for(tmp_path: Path) -> None:
    saved_toy(tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "small", bits=4, group_size=16)
    with safetensors.safe_open(tmp_path / "small" / "model.safetensors", "pt") as file:
        expert = "model.language_model.layers.1.mlp.experts.3.up_proj.weight"
        packed, scale, shape = (file.get_tensor(f"{expert}_{part}") for part in ("packed", "scale", "shape"))
    assert (packed.dtype, tuple(packed.shape)) == (torch.int32, (48, 4))  # (I, H / 8)
    assert (scale.dtype, tuple(scale.shape)) == (torch.bfloat16, (48, 2))  # (I, H / 16)
    assert (shape.dtype, shape.tolist()) == (torch.int64, [48, 32])


def test_the_config_gains_only_the_quantisation_and_other_files_are_copied(tmp_path: Path) -> None:
    folder = saved_toy(tmp_path / "float")
    config = {**json.loads((folder / "config.json").read_text()), "transformers_version": "5.23.0"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(b'{"x": 1}')
    (folder / "training_args.bin").write_bytes(b"a pickle")
    quantize_checkpoint(folder, tmp_path / "small")
    written = json.loads((tmp_path / "small" / "config.json").read_text())
    assert written.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert written == config
    assert {path.name for path in (tmp_path / "small").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "model_card.md", "SHA256SUMS"),
    }
    assert (tmp_path / "small" / "tokenizer.json").read_bytes() == b'{"x": 1}'


def test_dense_layers_and_unfused_sources_give_the_same_integers(tmp_path: Path) -> None:
    config = toy_config(mlp_layer_types=["dense", "sparse"])
    saved_toy(tmp_path / "fused", config)
    quantize_checkpoint(tmp_path / "fused", tmp_path / "small")
    small = open_checkpoint(tmp_path / "small")
    dense = small.weight("model.language_model.layers.0.mlp.gate_proj.weight")
    assert isinstance(dense, Quantized)

    fused = "model.language_model.layers.1.mlp.experts.gate_up_proj"
    stored = random_tensors(config)
    gate_up = stored.pop(fused)
    for e in range(4):
        prefix = fused.removesuffix("gate_up_proj") + str(e)
        stored[f"{prefix}.gate_proj.weight"], stored[f"{prefix}.up_proj.weight"] = map(np.copy, np.split(gate_up[e], 2))
    (tmp_path / "unfused").mkdir()
    (tmp_path / "unfused" / "config.json").write_text(json.dumps(config.to_dict()))
    safetensors.numpy.save_file(stored, tmp_path / "unfused" / "model.safetensors")
    quantize_checkpoint(tmp_path / "unfused", tmp_path / "small-too")
    one, other = small.weight(fused), open_checkpoint(tmp_path / "small-too").weight(fused)
    assert isinstance(one, Quantized)
    assert isinstance(other, Quantized)
    np.testing.assert_array_equal(one.packed, other.packed)
    np.testing.assert_array_equal(one.scales, other.scales)


@given(st.sampled_from([4, 8]), st.integers(0, 2**32 - 1), st.floats(-30, 30))
def test_rounding_follows_the_definition_value_by_value(bits: Bits, seed: int, exponent: float) -> None:
    matrix = (np.random.default_rng(seed).standard_normal((3, 16)) * 2.0**exponent).astype(np.float32)
    values, scale_bits = round_to_groups(matrix, bits, 8)
    scales = torch.from_numpy(scale_bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    largest = (1 << (bits - 1)) - 1
    for row in range(3):
        for group in range(2):
            part = matrix[row, 8 * group : 8 * group + 8]
            assert scales[row, group] == bfloat16(np.array([np.abs(part).max() / np.float32(largest)]))[0]
            for value, weight in zip(values[row, 8 * group : 8 * group + 8], part, strict=True):
                expected = max(-largest, min(largest, round(float(weight / scales[row, group]))))
                assert value == expected


def test_groups_of_zeros_and_of_the_smallest_floats_stay_finite() -> None:
    matrix = np.zeros((3, 8), np.float32)
    matrix[1] = np.float32(1e-45)
    matrix[2, 0] = np.finfo(np.float32).max
    values, scale_bits = round_to_groups(matrix, 8, 8)
    restored = dequantize(values, (scale_bits.astype(np.uint32) << 16).view(np.float32))
    assert restored[:2].tolist() == [[0.0] * 8] * 2
    assert np.isfinite(restored).all()
    np.testing.assert_allclose(restored[2], matrix[2], rtol=0.01)


def test_the_default_group_is_the_largest_that_divides_every_width() -> None:
    assert default_group_size(preset("muse-spark-nano"), 8) == 64
    assert default_group_size(preset("muse-spark-nano"), 4) == 32
    assert default_group_size(TOY, 8) == 16  # widths 64, 32 and 48
    with pytest.raises(CheckpointError, match="no group of at least 8 inputs divides every width"):
        default_group_size(toy_config(moe_intermediate_size=44), 8)
    assert default_group_size(toy_config(moe_intermediate_size=40), 8) == 8


def test_what_cannot_be_done_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = saved_toy(tmp_path / "float")
    with pytest.raises(CheckpointError, match=r"group_size 32 doesn't divide the 48 inputs of .*down_proj"):
        quantize_checkpoint(source, tmp_path / "small", group_size=32)
    for group_size in (7, 0, -16):
        with pytest.raises(CheckpointError, match=f"group_size is {group_size}; below 8"):
            quantize_checkpoint(source, tmp_path / "small", group_size=group_size)
    with pytest.raises(CheckpointError, match="is the source itself"):
        quantize_checkpoint(source, tmp_path / "float" / ".." / "float")
    tensors = random_tensors()
    tensors["lm_head.weight"][3, 4] = np.inf
    save_checkpoint(tmp_path / "infinite", TOY, tensors)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight holds NaN or infinity"):
        quantize_checkpoint(tmp_path / "infinite", tmp_path / "small")
    assert {path.name for path in tmp_path.iterdir()} == {"float", "infinite"}
    quantize_checkpoint(source, tmp_path / "small")
    with pytest.raises(CheckpointError, match="is quantised already, to 8 bits"):
        quantize_checkpoint(tmp_path / "small", tmp_path / "smaller", bits=4)


def test_the_audio_tower_is_kept_as_it_is(tmp_path: Path) -> None:
    audio = {
        "model.audio_tower.proj.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
        "model.audio_tower.count": np.array(7, np.int64),
    }
    write_stored(tmp_path / "float", TOY, {**random_tensors(), **audio})
    quantize_checkpoint(tmp_path / "float", tmp_path / "small")
    with safetensors.safe_open(tmp_path / "small" / "model.safetensors", "np") as file:
        for name, array in audio.items():
            kept = file.get_tensor(name)
            assert kept.dtype == array.dtype
            np.testing.assert_array_equal(kept, array)
    open_checkpoint(tmp_path / "small")
