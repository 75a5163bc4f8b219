"""The engine over real networks of all families: float32 against the naive loop, which computes everything anew.

The rounded precisions of the native runner have no naive twin; they must agree with themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from musespark.chat.images import PatchedImage
from musespark.engine.engine import Engine
from musespark.engine.request import Request
from musespark.model.config import ModelType
from musespark.model.network import Network
from tests.engine.driver import Driver, request, run_alone
from tests.engine.torch_runners import torch_runner
from tests.model.network.builders import IMAGE_TOKEN, VOCAB_SIZE, picture, random_config, random_network
from tests.model.network.families import family_network, tile
from tests.native.runners import native
from tests.reference_runner import ReferenceRunner

FAMILIES: tuple[ModelType, ...] = ("muse_spark", "muse_glimmer", "llama4")
MAX_TOKENS = 8


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on tensors this small only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=FAMILIES)
def network(request: pytest.FixtureRequest) -> Network:
    """One layer that sees a window or a chunk of 40 over pages of 64, and one full layer."""
    if request.param == "muse_spark":
        return random_network(random_config(5, layers=2, sliding_window=40), seed=1)
    if request.param == "muse_glimmer":
        return family_network("muse_glimmer", 5, num_hidden_layers=2, sliding_window=40)
    return family_network(
        "llama4",
        5,
        num_hidden_layers=2,
        no_rope_layers=[1, 0],
        attention_chunk_size=40,
        attn_temperature_tuning=True,
        interleave_moe_layer_step=2,
        num_local_experts=4,
        num_experts_per_tok=1,
    )


def ordinary(length: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(IMAGE_TOKEN + 1, VOCAB_SIZE, length)]


@dataclass(frozen=True)
class Asked:
    """A prompt with at most one image."""

    prompt: list[int]
    images: tuple[PatchedImage, ...] = ()

    def request(self) -> Request:
        spans = [(self.prompt.index(IMAGE_TOKEN), image.num_tokens) for image in self.images]
        ends = tuple((at, at + rows) for at, rows in spans)
        return request(self.prompt, MAX_TOKENS, images=self.images, image_spans=ends)


@pytest.fixture(scope="module")
def asked(network: Network) -> list[Asked]:
    """16 of them; the last crosses a page."""
    image = picture(4, 6) if network.config.vision is not None else tile(network.config, 0)
    lengths = (1, 39, 40, 41, 64, 65, 129, 2, 3, 4, 5, 6, 7, 8)
    pictured = [ordinary(n, n) + [IMAGE_TOKEN] * image.num_tokens + ordinary(20, n + 1) for n in (3, 60)]
    return [*(Asked(ordinary(n, n)) for n in lengths), *(Asked(prompt, (image,)) for prompt in pictured)]


@pytest.fixture(scope="module")
def naive(network: Network, asked: list[Asked]) -> list[list[int]]:
    return [naive_loop(network, list(one.prompt), one.images) for one in asked]


@torch.no_grad()
def naive_loop(network: Network, tokens: list[int], images: tuple[PatchedImage, ...]) -> list[int]:
    for _ in range(MAX_TOKENS):
        logits = network(torch.tensor([tokens]), images=images)[0, -1]
        logits[IMAGE_TOKEN] = -torch.inf  # never sampled
        tokens.append(int(logits.argmax()))
    return tokens[-MAX_TOKENS:]


def engine_over(network: Network, runner: str, **options: int) -> Engine:
    if runner == "reference":
        return Engine(ReferenceRunner(network, num_full_pages=64, num_sliding_pages=64), **options)
    if runner == "torch":
        return Engine(torch_runner(network, num_full_pages=64, num_sliding_pages=64), **options)
    return Engine(native(network, precision=runner, num_full_pages=64, num_sliding_pages=64, num_threads=2), **options)


@pytest.mark.parametrize("runner", ["reference", "float32", "torch"])
def test_batch_of_16_equals_the_naive_loop_and_again_from_the_cache(
    network: Network, asked: list[Asked], naive: list[list[int]], runner: str
) -> None:
    engine = engine_over(network, runner)
    for cold in (True, False):
        driver = Driver(engine)
        seen = [driver.submit(one.request()) for one in asked]
        driver.run()
        assert [one.ids() for one in seen] == naive
        assert all(one.usage is not None and (one.usage.cached_tokens == 0 or not cold) for one in seen)
    assert engine.stats().num_cached_tokens_total == sum((len(one.prompt) - 1) // 64 * 64 for one in asked)


@pytest.mark.parametrize("runner", ["reference", "float32", "torch"])
@pytest.mark.parametrize("index", [6, 15])
def test_alone_and_chunked_equals_the_naive_loop(
    network: Network, asked: list[Asked], naive: list[list[int]], index: int, runner: str
) -> None:
    for max_batch_tokens in (7, 512):
        engine = engine_over(network, runner, max_batch_tokens=max_batch_tokens, max_running=1)
        assert run_alone(engine, asked[index].request()).ids() == naive[index]


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_a_rounded_network_says_the_same_alone_batched_chunked_cached(
    network: Network, asked: list[Asked], precision: str
) -> None:
    alone = [run_alone(engine_over(network, precision), one.request()).ids() for one in asked]
    for max_batch_tokens in (16, 30, 512):
        engine = engine_over(network, precision, max_batch_tokens=max_batch_tokens)
        for _ in range(2):
            driver = Driver(engine)
            seen = [driver.submit(one.request()) for one in asked]
            driver.run()
            assert [one.ids() for one in seen] == alone
