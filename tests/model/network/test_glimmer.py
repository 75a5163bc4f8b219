"""muse_glimmer equals transformers 5.23 in every logit, and the traps in which it differs from muse_spark."""

from __future__ import annotations

import pytest
import torch

from musespark.model.config import ModelConfig
from musespark.model.network import KVCache, MuseGlimmer, MuseSpark, build_network
from musespark.model.network.attention import plan_attention
from musespark.model.network.glimmer import GlimmerAttention
from musespark.model.network.text import Attention
from musespark.model.network.vision import resample_table
from musespark.model.presets import preset
from musespark.model.tensors import expected_tensors
from tests.model.network.builders import VOCAB_SIZE, pixel_inputs, prompt_with_images, random_config
from tests.model.network.families import glimmer_config, random_glimmer, twin

TOLERANCE = 1e-4


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@pytest.mark.parametrize("seed", range(14))
@torch.no_grad()
def test_logits_equal_those_of_transformers(seed: int) -> None:
    """Text over the edge of the window, and two images, mostly not square, one larger than the position table."""
    network = random_glimmer(glimmer_config(seed), seed)
    ids, images = prompt_with_images(network, seed, 40)
    expected = twin(network, ("eager", "sdpa")[seed % 2])(input_ids=ids, **pixel_inputs(images)).logits
    assert difference(network(ids, images=images), expected) < TOLERANCE


@pytest.mark.parametrize("seed", range(8))
@torch.no_grad()
def test_logits_with_a_cache_equal_those_of_transformers(seed: int) -> None:
    network = random_glimmer(glimmer_config(seed + 100), seed)
    ids, images = prompt_with_images(network, seed, 32)
    chunks = [ids[:, :-20], ids[:, -20:-7], *ids[:, -7:].split(1, dim=1)]
    reference, past, cache = twin(network), None, KVCache(network.config.text)
    for i, chunk in enumerate(chunks):
        inputs = pixel_inputs(images) if i == 0 else {}
        expected = reference(input_ids=chunk, past_key_values=past, use_cache=True, **inputs)
        past = expected.past_key_values
        logits = network(chunk, images=images if i == 0 else (), cache=cache)
        assert difference(logits, expected.logits) < TOLERANCE


@pytest.mark.parametrize("name", ["muse-glimmer-30b", "llama-4-scout", "llama-4-maverick", "muse-spark-400b", "toy"])
def test_a_network_has_the_tensors_that_its_checkpoints_hold(name: str) -> None:
    """The list is compared to transformers' own in test_size.py; nothing is allocated here."""
    with torch.device("meta"):
        state = build_network(preset(name)).state_dict()
    assert {n: tuple(tensor.shape) for n, tensor in state.items()} == expected_tensors(preset(name))


@torch.no_grad()
def test_the_final_norm_is_plain_and_the_norms_around_branches_are_centred() -> None:
    network = random_glimmer(glimmer_config(1))
    ids = torch.arange(12, 30)[None]
    for name, parameter in network.named_parameters():
        if name.endswith("layernorm.weight"):
            parameter.fill_(-1.0)  # 1 + weight = 0: every branch falls silent
    alone = network.text_model.embed(ids)
    final = network.text_model.norm.weight
    assert torch.allclose(network.hidden_states(ids)[0], alone * final, atol=1e-4)
    final.zero_()
    assert not network(ids).any()


@torch.no_grad()
def test_attention_has_a_gate_and_no_norm_of_its_heads() -> None:
    """Doubled values double what goes into `o_proj` here; muse_spark norms that away."""
    for kind, config, factor in (
        (GlimmerAttention, glimmer_config(2), 2.0),
        (Attention, random_config(2), 1.0),
    ):
        attention = kind(config.text, 0)
        hidden = torch.randn(1, 1, config.text.hidden_size, generator=torch.Generator().manual_seed(0))
        network = random_glimmer(config) if kind is GlimmerAttention else MuseSpark(config)
        rotary = network.text_model.rotary(torch.tensor([[0]]))
        plan = plan_attention(1, 0, None, None, hidden.device)
        before = attention(hidden, rotary, plan, None)
        attention.v_proj.weight.mul_(2.0)
        assert torch.allclose(attention(hidden, rotary, plan, None), before * factor, rtol=1e-2, atol=1e-5)


@torch.no_grad()
def test_the_weight_of_the_norm_after_attention_counts() -> None:
    network = random_glimmer(glimmer_config(3))
    ids = torch.arange(12, 30)[None]
    before = network(ids)
    network.text_model.layers[0].post_attention_layernorm.weight.add_(0.5)
    assert difference(network(ids), before) > 1e-3


def test_the_position_table_is_sampled_in_raster_order() -> None:
    """The published example of 2 × 4 patches: rows 7.5 and 23.5, columns 3.5, 11.5, 19.5, 27.5."""
    place = torch.arange(32.0)
    table = torch.stack((place.repeat_interleave(32), place.repeat(32)), dim=1)  # entry (r, c) holds r and c
    expected = [[row, column] for row in (7.5, 23.5) for column in (3.5, 11.5, 19.5, 27.5)]
    assert resample_table(table, (2, 4), "ij").tolist() == expected
    assert resample_table(table, (2, 4), "xy").tolist() != expected
    assert torch.equal(resample_table(table, (6, 6), "ij"), resample_table(table, (6, 6), "xy"))


@torch.no_grad()
def test_far_tokens_are_a_set_to_a_full_layer_because_it_has_no_positions() -> None:
    """One layer is the last one, hence full and without rotary embedding: permuting the past changes nothing."""
    config = glimmer_config(4, num_hidden_layers=1, layer_types=None, layer_rope_theta=None)
    network = random_glimmer(config)
    ids = torch.randint(12, VOCAB_SIZE, (1, 20), generator=torch.Generator().manual_seed(0))
    swapped = ids.clone()
    swapped[0, [2, 9]] = ids[0, [9, 2]]
    assert difference(network(ids)[:, -1], network(swapped)[:, -1]) < 1e-5


def test_fresh_weights_are_seeded_and_norms_start_neutral() -> None:
    first, second = MuseGlimmer(glimmer_config(5)), MuseGlimmer(glimmer_config(5))
    first.init_weights(3)
    second.init_weights(3)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
        if name.endswith("layernorm.weight"):
            assert not a.any()


def test_a_text_model_has_no_tower() -> None:
    config = ModelConfig.from_dict({**glimmer_config(6).to_dict(), "vision_config": None})
    assert not [name for name in MuseGlimmer(config).state_dict() if "vision" in name]
