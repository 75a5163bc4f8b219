"""Llama 4 stores fused experts the other way round, (E, in, out), and single experts as everybody does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musespark.errors import CheckpointError
from musespark.model.checkpoint import Plain, Quantized, open_checkpoint, save_checkpoint
from musespark.model.pack_quantized import Bits
from musespark.model.presets import preset
from musespark.model.quantize import quantize_checkpoint, round_to_groups
from musespark.model.tensor_file import RawTensor, write_tensors
from tests.model.files import random_tensors, write_stored

TOY = preset("toy-llama4")
EXPERTS = "language_model.model.layers.1.feed_forward.experts."
WIDE = TOY.text.moe_intermediate_size


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "fused", TOY, random_tensors(TOY))
    return tmp_path / "fused"


def gate_up_and_down(tensors: dict[str, np.ndarray], expert: int, layer_prefix: str = EXPERTS) -> list[np.ndarray]:
    """The three matrices of one expert, (out, in), cut out of the fused tensors by hand."""
    gate_up = tensors[f"{layer_prefix}gate_up_proj"][expert]  # (in, 2 · out): gate columns first
    down = tensors[f"{layer_prefix}down_proj"][expert]
    return [gate_up[:, :WIDE].T, gate_up[:, WIDE:].T, down.T]


def test_a_fused_expert_is_given_with_its_outputs_in_rows(fused: Path) -> None:
    gate, up, down = gate_up_and_down(random_tensors(TOY), 2)
    checkpoint = open_checkpoint(fused)
    assert np.array_equal(checkpoint.weight(f"{EXPERTS}gate_up_proj").float32()[2], np.concatenate([gate, up]))
    assert np.array_equal(checkpoint.weight(f"{EXPERTS}down_proj").float32()[2], down)


def test_experts_stored_one_by_one_are_the_same_experts(fused: Path, tmp_path: Path) -> None:
    tensors = random_tensors(TOY)
    stored = {name: array for name, array in tensors.items() if ".experts." not in name}
    for name in [name for name in tensors if name.endswith(".experts.down_proj")]:
        prefix = name.removesuffix("down_proj")
        for e in range(TOY.text.num_local_experts):
            parts = zip(("gate_proj", "up_proj", "down_proj"), gate_up_and_down(tensors, e, prefix), strict=True)
            stored |= {f"{prefix}{e}.{part}.weight": np.ascontiguousarray(matrix) for part, matrix in parts}
    (tmp_path / "unfused").mkdir()
    (tmp_path / "unfused" / "config.json").write_bytes((fused / "config.json").read_bytes())
    raw = {name: RawTensor.from_array(array) for name, array in stored.items()}
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in raw.items()}
    write_tensors(tmp_path / "unfused" / "model.safetensors", layout, raw.__getitem__)

    one, other = open_checkpoint(fused), open_checkpoint(tmp_path / "unfused")
    for name in one.names():
        assert isinstance(other.weight(name), Plain)
        assert np.array_equal(one.weight(name).float32(), other.weight(name).float32()), name


@pytest.mark.parametrize("bits", [8, 4])
def test_experts_are_quantised_along_their_inputs(fused: Path, tmp_path: Path, bits: Bits) -> None:
    quantize_checkpoint(fused, tmp_path / "quantised", bits=bits)
    checkpoint = open_checkpoint(tmp_path / "quantised")
    weight = checkpoint.weight(f"{EXPERTS}gate_up_proj")
    assert isinstance(weight, Quantized)
    gate, up, _ = gate_up_and_down(random_tensors(TOY), 3)
    for rows, matrix in ((weight.packed[3, :WIDE], gate), (weight.packed[3, WIDE:], up)):
        expected, _ = round_to_groups(np.ascontiguousarray(matrix), bits, weight.group_size)
        assert np.array_equal(rows, expected)
    assert isinstance(checkpoint.weight("language_model.lm_head.weight"), Quantized)
    assert isinstance(checkpoint.weight(f"{EXPERTS.removesuffix('experts.')}router.weight"), Plain)
    assert isinstance(checkpoint.weight("vision_model.model.layers.0.self_attn.q_proj.weight"), Plain)


@pytest.mark.parametrize("name", ["toy-glimmer", "toy-llama4"])
def test_an_audio_tower_is_unexpected_in_a_family_without_one(name: str, tmp_path: Path) -> None:
    config = preset(name)
    tensors = random_tensors(config) | {"model.audio_tower.norm.weight": np.zeros(1, np.float32)}
    write_stored(tmp_path / "model", config, tensors)
    with pytest.raises(CheckpointError, match=r"Unexpected: 'model\.audio_tower\.norm\.weight'"):
        open_checkpoint(tmp_path / "model")
