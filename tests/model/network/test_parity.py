"""Equal to transformers 5.23 in every logit, in float32, over random small configurations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from musespark.model.config import ModelConfig, VisionConfig
from musespark.model.network import KVCache, MuseSpark
from tests.model.network.builders import (
    IMAGE_TOKEN,
    VOCAB_SIZE,
    picture,
    pixel_inputs,
    prompt_with_images,
    random_config,
    random_network,
    twin,
)

TOLERANCE = 1e-4
SEEDS = range(24)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_logits_equal_those_of_transformers(seed: int) -> None:
    network = random_network(random_config(seed), seed)
    ids, images = prompt_with_images(network, seed, 40)
    reference = twin(network, attention=("eager", "sdpa")[seed % 2])
    expected = reference(input_ids=ids, **pixel_inputs(images)).logits
    assert difference(network(ids, images=images), expected) < TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_logits_with_a_cache_equal_those_of_transformers(seed: int) -> None:
    """An image prompt at once, then a chunk that crosses the window's edge, then single tokens; both keep a cache."""
    network = random_network(random_config(seed + 100), seed)
    ids, images = prompt_with_images(network, seed, 32)
    chunks = [ids[:, :-20], ids[:, -20:-7], *ids[:, -7:].split(1, dim=1)]
    reference, past, cache = twin(network), None, KVCache(network.config.text)
    for i, chunk in enumerate(chunks):
        inputs = pixel_inputs(images) if i == 0 else {}
        expected = reference(input_ids=chunk, past_key_values=past, use_cache=True, **inputs)
        past = expected.past_key_values
        logits = network(chunk, images=images if i == 0 else (), cache=cache)
        assert difference(logits, expected.logits) < TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_chunks_of_any_size_with_a_cache_equal_one_pass(seed: int) -> None:
    """Chunks may cut through an image: then each call gets the features of its own rows."""
    network = random_network(random_config(seed + 200), seed)
    ids, images = prompt_with_images(network, seed, 30)
    features = torch.cat(network.encode_images(images))
    whole = network(ids, images=images)
    r, cache, parts, row, start = np.random.default_rng(seed), KVCache(network.config.text), [], 0, 0
    while start < ids.shape[1]:
        chunk = ids[:, start : start + int(r.integers(1, 15))]
        num_rows = int((chunk == IMAGE_TOKEN).sum())
        parts.append(network(chunk, images=[features[row : row + num_rows]], cache=cache))
        row, start = row + num_rows, start + chunk.shape[1]
    assert difference(torch.cat(parts, dim=1), whole) < TOLERANCE


@torch.no_grad()
def test_a_batch_of_rows_with_an_image_each_equals_transformers() -> None:
    network = random_network(random_config(7))
    ids = torch.randint(12, VOCAB_SIZE, (2, 30), generator=torch.Generator().manual_seed(0))
    images = [picture(2, 6), picture(12, 2)]
    ids[0, 20:23], ids[1, 1:7] = IMAGE_TOKEN, IMAGE_TOKEN
    expected = twin(network)(input_ids=ids, **pixel_inputs(images)).logits
    assert difference(network(ids, images=images), expected) < TOLERANCE


@torch.no_grad()
def test_the_published_window_of_32_patches_equals_transformers() -> None:
    """The published table and window size, on grids just below, at and beyond them."""
    small = random_config(5)
    assert small.vision is not None
    config = dataclasses.replace(small, vision=dataclasses.replace(small.vision, pos_emb_height=32, pos_emb_width=32))
    network = random_network(config)
    images = [picture(2, 30), picture(32, 2), picture(34, 6), picture(4, 66)]
    ids = torch.full((1, sum(image.num_tokens for image in images)), IMAGE_TOKEN)
    expected = twin(network)(input_ids=ids, **pixel_inputs(images)).logits
    assert difference(network(ids, images=images), expected) < TOLERANCE


@torch.no_grad()
def test_lists_of_the_file_win_over_the_rule() -> None:
    """Layer kinds, rotary use and window kinds given explicitly, against every default."""
    data = random_config(11, layers=4).to_dict()
    data["text_config"] |= {
        "layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"],
        "layer_rope_theta": [1.0, 0, 0, 1.0],
    }
    data["vision_config"] |= {"num_hidden_layers": 2, "layer_types": ["full_attention", "window_attention"]}
    network = random_network(ModelConfig.from_dict(data))
    ids, images = prompt_with_images(network, 1, 30)
    expected = twin(network)(input_ids=ids, **pixel_inputs(images)).logits
    assert difference(network(ids, images=images), expected) < TOLERANCE


def test_weights_load_both_ways_with_no_name_left_over() -> None:
    """`twin` checks our names against theirs; here theirs come back. Only the audio tower has no place with us."""
    network = random_network(random_config(1))
    theirs = {k: v for k, v in twin(network).state_dict().items() if not k.startswith("model.audio_tower.")}
    back = MuseSpark(network.config)
    loaded = back.load_state_dict(theirs, strict=True)
    assert not loaded.missing_keys
    assert not loaded.unexpected_keys
    for name, tensor in network.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_a_text_model_has_no_tower_and_refuses_images() -> None:
    config = dataclasses.replace(random_config(2), vision=None)
    network = MuseSpark(config)
    assert not [name for name in network.state_dict() if "vision" in name]
    assert network(torch.tensor([[IMAGE_TOKEN]])).shape == (1, 1, VOCAB_SIZE)  # an ordinary token there
    with pytest.raises(ValueError, match="no vision tower"):
        network(torch.tensor([[IMAGE_TOKEN]]), images=[picture(2, 2)])


def test_the_published_configuration_has_the_published_shapes() -> None:
    """The names and shapes of transformers at full size, without a byte of memory for weights."""
    from transformers import MuseSparkConfig, MuseSparkForConditionalGeneration

    config = ModelConfig.from_dict({"model_type": "muse_spark", "text_config": {}, "vision_config": {}})
    assert config.vision == VisionConfig(layer_types=config.vision.layer_types if config.vision else ())
    with torch.device("meta"):
        ours = MuseSpark(config).state_dict()
        theirs = MuseSparkForConditionalGeneration(MuseSparkConfig()).state_dict()
    expected = {k: v.shape for k, v in theirs.items() if not k.startswith("model.audio_tower.")}
    assert {k: v.shape for k, v in ours.items()} == expected
