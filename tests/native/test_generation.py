"""The engine over the native runner writes what the naive loop over the torch network writes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from musespark.engine.engine import Engine
from musespark.model.network import MuseSpark, generate_greedy
from tests.engine.driver import Driver, request, run_alone
from tests.model.network.builders import IMAGE_TOKEN, picture, random_config, random_network
from tests.native.runners import native, random_ids

NUM_NEW = 40
PROMPTS = [random_ids(length, length) for length in (1, 5, 63, 64, 65, 130, 200, 17)]


@pytest.fixture(scope="module")
def network() -> MuseSpark:
    config = random_config(8, layers=4, sliding_window=70, num_local_experts=4, num_experts_per_tok=2)
    network = random_network(replace(config, text=replace(config.text, max_position_embeddings=512)), 8)
    with torch.no_grad():
        network.lm_head.weight.mul_(4)  # so that no two tokens are nearly equally likely
    return network


def engine_of(network: MuseSpark, **options: int) -> Engine:
    return Engine(native(network, num_full_pages=64, num_sliding_pages=64, num_threads=2), **options)


@pytest.mark.parametrize("max_batch_tokens", [8, 64, 512])
def test_greedy_output_is_that_of_the_naive_loop_alone_and_in_a_batch(
    network: MuseSpark, max_batch_tokens: int
) -> None:
    prompts = [random_ids(length, length) for length in (1, 5, 63, 64, 65, 130, 200, 17)]
    expected = [generate_greedy(network, prompt, max_tokens=NUM_NEW) for prompt in prompts]
    engine = engine_of(network, max_batch_tokens=max_batch_tokens, max_running=8)
    driver = Driver(engine)
    seen = [driver.submit(request(prompt, NUM_NEW)) for prompt in PROMPTS]
    driver.run()
    assert [one.ids() for one in seen] == expected
    again = run_alone(engine, request(PROMPTS[6], NUM_NEW))  # now from the prefix cache
    assert again.ids() == expected[6]
    assert again.usage is not None
    assert again.usage.cached_tokens == 192


def test_a_picture_in_the_prompt_is_seen_as_the_reference_sees_it(network: MuseSpark) -> None:
    image = picture(6, 10)
    prompt = [20, *[IMAGE_TOKEN] * image.num_tokens, *random_ids(60)]
    expected = generate_greedy(network, prompt, [image], max_tokens=NUM_NEW)
    assert expected != generate_greedy(network, prompt, [picture(6, 10, seed=1)], max_tokens=NUM_NEW)
    engine = engine_of(network, max_batch_tokens=9, max_running=1)  # the image comes in pieces
    seen = run_alone(engine, request(prompt, NUM_NEW, images=(image,), image_spans=((1, 1 + image.num_tokens),)))
    assert seen.ids() == expected


def test_log_probabilities_are_those_of_the_reference(network: MuseSpark) -> None:
    prompt = random_ids(30)
    seen = run_alone(engine_of(network), request(prompt, 5, logprobs=0))
    ids = seen.ids()
    with torch.no_grad():
        logits = network(torch.tensor([prompt + ids]))[0, 29:-1]
    logits[:, IMAGE_TOKEN] = -torch.inf  # the engine never writes one: it would stand for a picture that is not there
    expected = torch.log_softmax(logits, dim=-1)
    got = np.array([token.logprob for token in seen.tokens[0]])
    assert np.abs(got - expected[range(5), ids].numpy()).max() < 1e-4
