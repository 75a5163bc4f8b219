"""The paged oracle against the network itself: pages in any order, chunks of any size, neighbours of any kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musespark.engine.runner import NO_PAGE, PAGE_SIZE, Batch
from musespark.errors import EngineFailed
from musespark.model.network import MuseSpark
from tests.model.network.builders import IMAGE_TOKEN, picture, random_config, random_network
from tests.model.network.families import glimmer_config, llama4_config, random_glimmer, random_llama4
from tests.reference_runner import ReferenceRunner

WINDOW = 70


@pytest.fixture(scope="module")
def network() -> MuseSpark:
    return random_network(random_config(3, layers=5, sliding_window=WINDOW))


def batch_of(chunks: list[tuple[list[int], int, list[int], list[int]]], features: np.ndarray | None = None) -> Batch:
    """Each chunk: token ids, position of the first, full page ids and sliding page ids of the sequence."""
    width = max(len(full) for _, _, full, _ in chunks)
    token_ids = np.array([t for ids, *_ in chunks for t in ids], np.int32)
    embed_rows = np.flatnonzero(token_ids == IMAGE_TOKEN).astype(np.int32)

    def table(pages: list[list[int]]) -> np.ndarray:
        return np.array([row + [NO_PAGE] * (width - len(row)) for row in pages], np.int32)

    return Batch(
        token_ids=token_ids,
        positions=np.concatenate([np.arange(start, start + len(ids)) for ids, start, *_ in chunks]),
        query_start=np.cumsum([0, *(len(ids) for ids, *_ in chunks)]).astype(np.int32),
        full_block_table=table([full for _, _, full, _ in chunks]),
        sliding_block_table=table([sliding for *_, sliding in chunks]),
        embed_rows=embed_rows,
        embeds=np.zeros((0, 0), np.float32) if features is None else features,
        logit_rows=np.arange(len(token_ids), dtype=np.int32),
    )


def test_pages_in_any_order_give_the_logits_of_the_network(network: MuseSpark) -> None:
    image = picture(4, 6)
    ids = [5, 9, 7, *[IMAGE_TOKEN] * 6, *np.random.default_rng(0).integers(12, 90, 151).tolist()]
    with torch.no_grad():
        expected = network(torch.tensor([ids]), images=[image])[0].numpy()
    runner = ReferenceRunner(network, num_full_pages=5, num_sliding_pages=4)
    features = runner.encode_image(image)
    first = runner.forward(batch_of([(ids[:100], 0, [4, 1], [3, 0])], features))
    # The window reaches back from position 100 to 31, from 159 to 90; page 0 still holds 31 to 63.
    second = runner.forward(batch_of([(ids[100:133], 100, [4, 1, 0], [3, 0, 1])]))
    # From position 133 on nothing before 64 is seen: its sliding page may go to somebody else.
    third = runner.forward(batch_of([(ids[133:], 133, [4, 1, 0], [NO_PAGE, 0, 1])]))
    assert np.abs(np.concatenate([first, second, third]) - expected).max() < 1e-4


def test_glimmer_runs_in_pages_too() -> None:
    network = random_glimmer(glimmer_config(3, sliding_window=WINDOW))
    ids = np.random.default_rng(0).integers(12, 90, 90).tolist()
    with torch.no_grad():
        expected = network(torch.tensor([ids]))[0].numpy()
    runner = ReferenceRunner(network, num_full_pages=2, num_sliding_pages=2)
    logits = [
        runner.forward(batch_of([(ids[:50], 0, [1], [0])])),
        runner.forward(batch_of([(ids[50:], 50, [1, 0], [0, 1])])),
    ]
    assert np.abs(np.concatenate(logits) - expected).max() < 1e-4


def test_chunked_layers_keep_the_pages_of_their_chunk_in_the_sliding_group() -> None:
    network = random_llama4(llama4_config(4, num_hidden_layers=4, attention_chunk_size=100, no_rope_layers=None))
    ids = np.random.default_rng(0).integers(12, 90, 205).tolist()
    with torch.no_grad():
        expected = network(torch.tensor([ids]))[0].numpy()
    runner = ReferenceRunner(network, num_full_pages=4, num_sliding_pages=3)
    logits = [
        runner.forward(batch_of([(ids[:90], 0, [3, 1], [2, 0])])),
        # From position 100 on page 0 is not seen any more, but page 1 still is: 100 lies in the middle of it.
        runner.forward(batch_of([(ids[90:100], 90, [3, 1], [2, 0])])),
        runner.forward(batch_of([(ids[100:190], 100, [3, 1, 2], [NO_PAGE, 0, 2])])),
        runner.forward(batch_of([(ids[190:192], 190, [3, 1, 2], [NO_PAGE, 0, 2])])),
        # The third chunk begins in page 3, so that one is all it needs.
        runner.forward(batch_of([(ids[192:200], 192, [3, 1, 2, 0], [NO_PAGE, 0, 2, 1])])),
        runner.forward(batch_of([(ids[200:], 200, [3, 1, 2, 0], [NO_PAGE, NO_PAGE, NO_PAGE, 1])])),
    ]
    assert np.abs(np.concatenate(logits) - expected).max() < 1e-4


def test_logits_do_not_depend_on_neighbours_or_chunks_bit_for_bit(network: MuseSpark) -> None:
    generator = np.random.default_rng(1)
    one, two = (generator.integers(12, 90, PAGE_SIZE + 20).tolist() for _ in range(2))
    alone = ReferenceRunner(network, num_full_pages=2, num_sliding_pages=2)
    whole = alone.forward(batch_of([(one, 0, [0, 1], [0, 1])]))
    shared = ReferenceRunner(network, num_full_pages=4, num_sliding_pages=4)
    shared.forward(batch_of([(two[:3], 0, [0, 2], [3, 1]), (one[:50], 0, [3, 1], [2, 0])]))
    beside = shared.forward(batch_of([(one[50:], 50, [3, 1], [2, 0]), (two[3:], 3, [0, 2], [3, 1])]))
    assert np.array_equal(beside[: len(one) - 50], whole[50:])


def test_a_page_that_is_needed_and_missing_fails_loudly(network: MuseSpark) -> None:
    runner = ReferenceRunner(network, num_full_pages=1, num_sliding_pages=1)
    with pytest.raises(AssertionError, match="no page"):
        runner.forward(batch_of([([5], 0, [NO_PAGE], [0])]))


def test_a_closed_runner_says_so(network: MuseSpark) -> None:
    runner = ReferenceRunner(network, num_full_pages=1, num_sliding_pages=1)
    runner.close()
    with pytest.raises(EngineFailed):
        runner.encode_image(picture(2, 2))
