"""The bytes that a decoded token must read, against what the runner says it holds; and that the measuring measures."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from musespark.engine.native import NativeRunner, page_bytes
from musespark.engine.speed import EngineSpeed, bytes_of_a_token, read_bandwidth
from musespark.model.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from musespark.model.presets import preset
from musespark.model.tensors import expected_tensors


def checkpoint_of(name: str, folder: Path) -> Checkpoint:
    config = dataclasses.replace(preset(name), vision=None, tile_vision=None)
    random = np.random.default_rng(0)
    shapes = expected_tensors(config).items()
    save_checkpoint(folder, config, {key: random.standard_normal(shape, np.float32) * 0.1 for key, shape in shapes})
    return open_checkpoint(folder)


def test_a_token_of_a_dense_model_reads_all_weights_but_the_embedding(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("toy-glimmer", tmp_path / "dense")
    runner = NativeRunner(checkpoint, precision="float32", num_full_pages=2, num_sliding_pages=2, num_threads=1)
    text = checkpoint.config.text
    embedding = text.vocab_size * text.hidden_size * 4
    assert bytes_of_a_token(checkpoint, "float32") == pytest.approx(runner.weight_bytes - embedding, rel=0.01)
    runner.close()


def test_a_token_of_a_mixture_reads_one_expert_of_each_layer(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("toy-llama4", tmp_path / "mixture")
    text = checkpoint.config.text
    runner = NativeRunner(checkpoint, precision="float32", num_full_pages=2, num_sliding_pages=2, num_threads=1)
    others = 3 * text.hidden_size * text.moe_intermediate_size * (text.num_local_experts - 1) * 4
    num_sparse = text.mlp_layer_types.count("sparse")
    embedding = text.vocab_size * text.hidden_size * 4
    expected = runner.weight_bytes - embedding - others * num_sparse
    assert bytes_of_a_token(checkpoint, "float32") == pytest.approx(expected, rel=0.01)
    runner.close()


def test_context_adds_keys_and_values_up_to_the_window_in_local_layers(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("toy-llama4", tmp_path / "context")
    full, local = page_bytes(checkpoint.config, "bf16")
    without = bytes_of_a_token(checkpoint, "bf16")
    assert bytes_of_a_token(checkpoint, "bf16", 64) - without == full + local
    span = checkpoint.config.text.local_span
    assert bytes_of_a_token(checkpoint, "bf16", 64 * 10) - without == 10 * full + math.ceil(span * local / 64)


def test_prefill_and_decode_take_time_and_leave_nothing_behind(tmp_path: Path) -> None:
    speed = EngineSpeed(checkpoint_of("toy-llama4", tmp_path / "engine"), context=200, streams=3, threads=1)
    assert speed.prefill(100) > 0
    assert speed.decode(70, 3, 4) > 0
    assert speed.decode(70, 1, 4) > 0
    speed.close()


def test_reads_are_counted() -> None:
    assert 1e8 < read_bandwidth(1, 0.05) < 1e12
