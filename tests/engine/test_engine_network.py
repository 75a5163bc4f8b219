"""The engine over real networks: float32 against the naive loop, which computes everything anew for each token.

The rounded precisions of the native runner have no naive twin; they must agree with themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from musespark.chat.images import PatchedImage
from musespark.engine.engine import Engine
from musespark.engine.request import Request
from musespark.model.network import MuseSpark
from tests.engine.driver import Driver, request, run_alone
from tests.model.network.builders import IMAGE_TOKEN, VOCAB_SIZE, picture, random_config, random_network
from tests.native.runners import native
from tests.reference_runner import ReferenceRunner

CAT = picture(4, 6)  # 6 rows
MAX_TOKENS = 8


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on tensors this small only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network() -> MuseSpark:
    """One sliding layer, with a window of 40 over pages of 64, and one full layer."""
    return random_network(random_config(5, layers=2, sliding_window=40), seed=1)


def ordinary(length: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(IMAGE_TOKEN + 1, VOCAB_SIZE, length)]


PROMPTS = [ordinary(length, length) for length in (1, 39, 40, 41, 64, 65, 129, 2, 3, 4, 5, 6, 7, 8)]
PICTURED = [ordinary(n, n) + [IMAGE_TOKEN] * 6 + ordinary(20, n + 1) for n in (3, 60)]  # the second crosses a page
REQUESTS = [(prompt, ()) for prompt in PROMPTS] + [(prompt, (CAT,)) for prompt in PICTURED]


@pytest.fixture(scope="module")
def naive(network: MuseSpark) -> list[list[int]]:
    return [naive_loop(network, list(prompt), images) for prompt, images in REQUESTS]


@torch.no_grad()
def naive_loop(network: MuseSpark, tokens: list[int], images: tuple[PatchedImage, ...]) -> list[int]:
    for _ in range(MAX_TOKENS):
        logits = network(torch.tensor([tokens]), images=images)[0, -1]
        logits[IMAGE_TOKEN] = -torch.inf  # never sampled
        tokens.append(int(logits.argmax()))
    return tokens[-MAX_TOKENS:]


def engine_over(network: MuseSpark, runner: str, **options: int) -> Engine:
    if runner == "reference":
        return Engine(ReferenceRunner(network, num_full_pages=64, num_sliding_pages=64), **options)
    return Engine(native(network, precision=runner, num_full_pages=64, num_sliding_pages=64, num_threads=2), **options)


def asked(index: int) -> Request:
    prompt, images = REQUESTS[index]
    spans = tuple((at, at + 6) for at in [prompt.index(IMAGE_TOKEN)]) if images else ()
    return request(prompt, MAX_TOKENS, images=images, image_spans=spans)


@pytest.mark.parametrize("runner", ["reference", "float32"])
def test_batch_of_16_equals_the_naive_loop_and_again_from_the_cache(
    network: MuseSpark, naive: list[list[int]], runner: str
) -> None:
    engine = engine_over(network, runner)
    for cold in (True, False):
        driver = Driver(engine)
        seen = [driver.submit(asked(index)) for index in range(16)]
        driver.run()
        assert [one.ids() for one in seen] == naive
        assert all(one.usage is not None and (one.usage.cached_tokens == 0 or not cold) for one in seen)
    assert engine.stats().num_cached_tokens_total == sum((len(prompt) - 1) // 64 * 64 for prompt, _ in REQUESTS)


@pytest.mark.parametrize("runner", ["reference", "float32"])
@pytest.mark.parametrize("index", [6, 15])
def test_alone_and_chunked_equals_the_naive_loop(
    network: MuseSpark, naive: list[list[int]], index: int, runner: str
) -> None:
    for max_batch_tokens in (7, 512):
        engine = engine_over(network, runner, max_batch_tokens=max_batch_tokens, max_running=1)
        assert run_alone(engine, asked(index)).ids() == naive[index]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_rounded_network_says_the_same_alone_batched_chunked_cached(network: MuseSpark, precision: str) -> None:
    alone = [run_alone(engine_over(network, precision), asked(index)).ids() for index in range(16)]
    for max_batch_tokens in (16, 30, 512):
        engine = engine_over(network, precision, max_batch_tokens=max_batch_tokens)
        for _ in range(2):
            driver = Driver(engine)
            seen = [driver.submit(asked(index)) for index in range(16)]
            driver.run()
            assert [one.ids() for one in seen] == alone
