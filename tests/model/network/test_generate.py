"""Loading and the naive loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from musespark.errors import CheckpointError
from musespark.model.checkpoint import save_checkpoint
from musespark.model.network import generate_greedy, load_network
from tests.model.network.builders import pixel_inputs, prompt_with_images, random_config, random_network, twin


@pytest.mark.parametrize("seed", range(4))
def test_greedy_tokens_equal_those_of_transformers(seed: int) -> None:
    network = random_network(random_config(seed + 300), seed)
    ids, images = prompt_with_images(network, seed, 12)
    generated = twin(network).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        **pixel_inputs(images),
    )
    assert generate_greedy(network, ids[0].tolist(), images, max_tokens=8) == generated[0, ids.shape[1] :].tolist()


def test_generation_ends_with_the_first_stop_id() -> None:
    network = random_network(random_config(1))
    free = generate_greedy(network, [20, 21, 22], max_tokens=6)
    stop = free[3]
    assert generate_greedy(network, [20, 21, 22], max_tokens=6, stop_ids={stop}) == free[: free.index(stop) + 1]
    assert generate_greedy(network, [20, 21, 22], max_tokens=0) == []


def test_a_saved_network_comes_back_bit_for_bit(tmp_path: Path) -> None:
    network = random_network(random_config(5))
    save_checkpoint(tmp_path / "model", network.config, network.state_dict())
    loaded = load_network(tmp_path / "model")
    assert loaded.config == network.config
    assert not loaded.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_network(tmp_path / "nothing")
