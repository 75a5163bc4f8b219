"""All families against transformers, over whatever configuration, prompt and division hypothesis thinks of."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musespark.model.network import KVCache
from tests.model.network import builders
from tests.model.network.builders import IMAGE_TOKEN, pixel_inputs, prompt_with_images, random_config, random_network
from tests.model.network.families import (
    glimmer_config,
    llama4_config,
    prompt_with_tiles,
    random_glimmer,
    random_llama4,
    tile_pixels,
    twin,
)

TOLERANCE = 1e-4


@settings(max_examples=30, deadline=None)
@given(
    family=st.sampled_from(["muse_spark", "muse_glimmer", "llama4"]),
    seed=st.integers(0, 1 << 20),
    num_tokens=st.integers(10, 60),
    where=st.floats(0, 1),
)
@torch.no_grad()
def test_logits_equal_those_of_transformers_at_once_and_in_two_parts(
    family: str, seed: int, num_tokens: int, where: float
) -> None:
    if family == "llama4":
        llama4 = random_llama4(llama4_config(seed), seed)
        ids, images = prompt_with_tiles(llama4, seed, num_tokens)
        network, expected = llama4, twin(llama4)(input_ids=ids, **tile_pixels(images)).logits
    else:
        glimmer = family == "muse_glimmer"
        network = random_glimmer(glimmer_config(seed), seed) if glimmer else random_network(random_config(seed), seed)
        ids, images = prompt_with_images(network, seed, num_tokens)
        reference = twin(network) if glimmer else builders.twin(network)
        expected = reference(input_ids=ids, **pixel_inputs(images)).logits
    assert float((network(ids, images=images) - expected).abs().max()) < TOLERANCE

    features = torch.cat(network.encode_images(images))
    split = 1 + int(where * (ids.shape[1] - 2))
    num_rows = int((ids[:, :split] == IMAGE_TOKEN).sum())
    cache = KVCache(network.config.text)
    parts = [
        network(ids[:, :split], images=[features[:num_rows]], cache=cache),
        network(ids[:, split:], images=[features[num_rows:]], cache=cache),
    ]
    assert float((torch.cat(parts, dim=1) - expected).abs().max()) < TOLERANCE
