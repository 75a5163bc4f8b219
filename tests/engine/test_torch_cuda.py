"""What only a GPU shows: the same numbers there, and recorded steps that give what computed ones give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from musespark.engine.torch_runner import TorchRunner
from musespark.engine.torch_runner.weights import random_network
from musespark.model.config import ModelConfig, ModelType
from musespark.model.presets import preset
from tests.engine.batches import Stream, batch_of, pages_for, reference_logits
from tests.engine.torch_runners import (
    ALIGNED,
    FAMILIES,
    assert_close,
    deep_network,
    torch_runner,
)
from tests.model.network.families import clear_ids

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_computes_in_float32_what_the_reference_does(family: ModelType) -> None:
    network = deep_network(family, 3, 3, **ALIGNED[family])
    ids = clear_ids(network, 150, 3)
    logits = torch_runner(network, device="cuda").forward(batch_of(Stream(ids, pages_for(150))))
    assert_close(logits, reference_logits(network, ids))


def small(name: str) -> ModelConfig:
    """A preset with widths that the grouped kernel takes."""
    config = preset(name)
    return replace(config, text=replace(config.text, max_position_embeddings=4096))


def runner_of(config: ModelConfig, *, records: bool) -> TorchRunner:
    network = random_network(config, torch.bfloat16, torch.device("cuda"))
    return TorchRunner.of_network(
        network, device="cuda", dtype=torch.bfloat16, num_full_pages=64, num_sliding_pages=64, records=records
    )


@pytest.mark.parametrize("name", ["toy", "toy-glimmer", "toy-llama4"])
@pytest.mark.parametrize("num_streams", [1, 3, 16])
def test_recorded_steps_give_the_logits_of_computed_ones(name: str, num_streams: int) -> None:
    config = small(name)
    recorded, computed = runner_of(config, records=True), runner_of(config, records=False)
    r = np.random.default_rng(0)
    streams = [Stream(r.integers(12, 300, 80).tolist(), [2 * n, 2 * n + 1]) for n in range(num_streams)]
    for runner in (recorded, computed):
        runner.forward(batch_of(*(stream.part(0, 60) for stream in streams)))
    for place in range(60, 80):  # over the border of a page
        batch = batch_of(*(stream.part(place, place + 1) for stream in streams))
        # Twice: the first run records, the second replays.
        first, again = recorded.forward(batch), recorded.forward(batch)
        expected = computed.forward(batch)
        assert np.abs(first - expected).max() < 1e-3
        assert np.abs(again - expected).max() < 1e-3
    assert recorded.records or torch.cuda.get_device_capability() < (9, 0)
