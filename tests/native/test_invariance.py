"""A token's logits are the same bits in any batch, any chunking, on any pages and on any number of threads."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest

from musespark.engine.native import NativeRunner, available_isas, page_bytes
from musespark.engine.runner import NO_PAGE
from musespark.model.config import ModelType
from musespark.model.network import Network
from tests.model.network.builders import IMAGE_TOKEN, picture, random_config, random_network
from tests.model.network.families import family_network
from tests.native.runners import Stream, batch_of, native, random_ids

LENGTH = 200
LOCAL_SPAN = 70  # the window, or the chunk: then position 150 is in the third
FAMILIES: tuple[ModelType, ...] = ("muse_spark", "muse_glimmer", "llama4")
CASES = [
    (family, precision, "float32" if precision == "float32" else "bf16", isa)
    for family in FAMILIES
    for precision in ("float32", "bf16", "int8", "int4")
    for isa in available_isas()
] + [(family, "int8", "int8", isa) for family in FAMILIES for isa in available_isas()]


def network_of(family: ModelType) -> Network:
    """Grouped heads of an odd number, dense and sparse layers, local and full ones."""
    sizes: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 60}
    experts = {"num_local_experts": 5, "num_experts_per_tok": 2}
    if family == "muse_glimmer":
        return family_network(family, 3, num_hidden_layers=5, sliding_window=LOCAL_SPAN, **sizes)
    if family == "llama4":
        span = {"attention_chunk_size": LOCAL_SPAN, "interleave_moe_layer_step": 2}
        return family_network(family, 3, num_hidden_layers=5, **span, **sizes, **experts)
    kinds = ["sparse", "dense", "sparse", "sparse", "sparse"]
    return family_network(family, 3, layers=5, sliding_window=LOCAL_SPAN, mlp_layer_types=kinds, **sizes, **experts)


@pytest.fixture(scope="module")
def network() -> Network:
    return network_of("muse_spark")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def runner(request: pytest.FixtureRequest) -> NativeRunner:
    family, precision, kv_precision, isa = request.param
    return native(network_of(family), precision=precision, kv_precision=kv_precision, isa=isa, num_threads=2)


@pytest.fixture(scope="module")
def whole(runner: NativeRunner) -> np.ndarray:
    """The logits of the sequence all at once and alone: what everything else must equal."""
    return runner.forward(batch_of(Stream(random_ids(LENGTH), [0, 1, 2, 3])))


@pytest.mark.parametrize(
    "cuts", [[1], [63], [64], [65], [5, 69, 70, 71, 134], list(range(1, LENGTH))], ids=lambda c: str(c[:5])
)
def test_chunks_give_the_same_bits_as_the_whole(runner: NativeRunner, whole: np.ndarray, cuts: list[int]) -> None:
    stream = Stream(random_ids(LENGTH), [7, 3, 9, 1], [2, 8, 4, 6])
    parts = [runner.forward(batch_of(stream.part(*ends))) for ends in itertools.pairwise([0, *cuts, LENGTH])]
    assert np.array_equal(np.concatenate(parts), whole)


def test_neighbours_of_any_kind_change_nothing(runner: NativeRunner, whole: np.ndarray) -> None:
    """Decoding one stream while others prefill, decode and carry images, in changing places of the batch."""
    stream = Stream(random_ids(LENGTH), [0, 1, 2, 3], [3, 2, 1, 0])
    others = Stream(random_ids(150, seed=1), [4, 5, 6]), Stream([IMAGE_TOKEN] * 40, [8])
    features = np.random.default_rng(0).standard_normal((40, 60), np.float32)
    got = [runner.forward(batch_of(stream.part(0, 100), others[1], features=features))[:100]]
    got.append(runner.forward(batch_of(others[0].part(0, 77), stream.part(100, 101)))[77:])
    for i in range(101, 130):
        got.append(runner.forward(batch_of(others[0].part(i - 24, i - 23), stream.part(i, i + 1), others[1]))[1:2])
    got.append(runner.forward(batch_of(stream.part(130, LENGTH), others[0].part(106, 150)))[: LENGTH - 130])
    assert np.array_equal(np.concatenate(got), whole)


def test_sliding_pages_out_of_the_window_may_be_gone(runner: NativeRunner, whole: np.ndarray) -> None:
    stream = Stream(random_ids(LENGTH), [0, 1, 2, 3], [4, 5, 6, 7])
    runner.forward(batch_of(stream.part(0, 150)))
    runner.forward(batch_of(Stream(random_ids(64, 2), [9], [4])))  # somebody else gets sliding page 4
    stream.sliding[0] = NO_PAGE  # position 150 sees 81 and later, or 140 and later
    assert np.array_equal(runner.forward(batch_of(stream.part(150, LENGTH))), whole[150:])


def test_a_shared_prefix_gives_the_same_bits(runner: NativeRunner, whole: np.ndarray) -> None:
    ids = random_ids(LENGTH)
    runner.forward(batch_of(Stream(ids[:128], [0, 1])))
    one = Stream(ids, [0, 1, 2, 3]).part(128, LENGTH)
    two = Stream(ids, [0, 1, 12, 13]).part(128, LENGTH)
    logits = runner.forward(batch_of(one, two))
    assert np.array_equal(logits[: LENGTH - 128], whole[128:])
    assert np.array_equal(logits[LENGTH - 128 :], whole[128:])


def test_what_an_earlier_owner_left_in_a_page_is_not_seen_even_if_it_is_nan(
    runner: NativeRunner, whole: np.ndarray
) -> None:
    poison = np.full((128, 60), np.nan, np.float32)
    broken = runner.forward(batch_of(Stream([IMAGE_TOKEN] * 128, [5, 6]), features=poison))
    assert np.isnan(broken).all()
    got = runner.forward(batch_of(Stream(random_ids(LENGTH), [6, 5, 2, 3])))
    assert np.array_equal(got, whole)


def test_a_broken_neighbour_in_the_batch_changes_nothing(runner: NativeRunner, whole: np.ndarray) -> None:
    poison = np.full((70, 60), np.inf, np.float32)
    got = runner.forward(
        batch_of(Stream([IMAGE_TOKEN] * 70, [5, 6]), Stream(random_ids(LENGTH), [0, 1, 2, 3]), features=poison)
    )
    assert np.array_equal(got[70:], whole)


def test_asking_for_fewer_logits_gives_the_same_rows(runner: NativeRunner, whole: np.ndarray) -> None:
    rows = [0, 63, 64, 150, 199]
    got = runner.forward(batch_of(Stream(random_ids(LENGTH), [0, 1, 2, 3]), logit_rows=rows))
    assert np.array_equal(got, whole[rows])
    assert runner.forward(batch_of(Stream(random_ids(5), [0]), logit_rows=[])).shape == (0, whole.shape[1])


def test_pages_beyond_2_to_the_31_elements_are_as_good_as_the_first() -> None:
    """Offsets are 64-bit: in bf16 that is four gibibytes. Pages that are not used cost no memory, so a large pool is
    cheap."""
    network = random_network(random_config(2, layers=2, sliding_window=LOCAL_SPAN))
    full, sliding = page_bytes(network.config, "bf16")
    num_pages = (4 << 30) // min(full, sliding) + 10
    if (full + sliding) * num_pages > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        pytest.skip("this machine has too little memory for the pool")
    runner = native(network, precision="bf16", num_full_pages=num_pages, num_sliding_pages=num_pages)
    ids = random_ids(LENGTH)
    low = runner.forward(batch_of(Stream(ids, [0, 1, 2, 3])))
    high = runner.forward(batch_of(Stream(ids, [num_pages - 1, num_pages // 2, 5, num_pages - 2])))
    assert np.array_equal(low, high)


@pytest.mark.parametrize("precision", ["float32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("family", ["muse_glimmer", "llama4"])
def test_the_number_of_threads_changes_nothing_in_any_family(family: ModelType, precision: str) -> None:
    network = network_of(family)
    results = []
    for num_threads in range(1, 9):
        runner = native(network, precision=precision, num_threads=num_threads)
        prefill = runner.forward(batch_of(Stream(random_ids(150), [0, 1, 2])))
        results.append(np.concatenate([prefill, runner.forward(batch_of(Stream([30], [0, 1, 2], start=150)))]))
        runner.close()
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("precision", ["float32", "bf16", "int8", "int4"])
def test_the_number_of_threads_changes_nothing(network: Network, precision: str) -> None:
    image = picture(10, 14)
    results = []
    for num_threads in range(1, 9):
        runner = native(network, precision=precision, num_threads=num_threads)
        assert runner.num_threads == num_threads
        features = runner.encode_image(image)
        ids = [20, *[IMAGE_TOKEN] * image.num_tokens, *random_ids(120)]
        prefill = runner.forward(batch_of(Stream(ids, [0, 1, 2]), features=features))
        decode = runner.forward(batch_of(Stream([30], [0, 1, 2], start=len(ids))))
        results.append(np.concatenate([prefill, decode]))
        runner.close()
    assert all(np.array_equal(result, results[0]) for result in results)
