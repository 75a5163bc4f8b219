"""Attention in blocks against one softmax over an explicit mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musespark.model.network import KVCache, MuseSpark
from musespark.model.network.attention import attend, plan_attention
from tests.model.network.builders import VOCAB_SIZE, random_config, random_network


def softmax_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The definition, one query head at a time; mask (B, T, S), True where a query sees a key."""
    heads = []
    for h in range(q.shape[1]):
        kv = h // (q.shape[1] // k.shape[1])
        scores = (q[:, h] @ k[:, kv].mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
        heads.append(scores.softmax(-1) @ v[:, kv])
    return torch.stack(heads, dim=1)


@settings(max_examples=150, deadline=None)
@given(
    num_queries=st.integers(1, 40),
    num_past=st.integers(0, 30),
    window=st.none() | st.integers(1, 50),
    block=st.integers(1, 48),
    documents=st.none() | st.lists(st.integers(0, 3), min_size=80, max_size=80),
    seed=st.integers(0, 99),
)
def test_blocks_equal_one_softmax_over_an_explicit_mask(
    num_queries: int, num_past: int, window: int | None, block: int, documents: list[int] | None, seed: int
) -> None:
    segments = None if documents is None else torch.tensor(documents).view(2, 40)[:, :num_queries].contiguous()
    num_past = num_past if segments is None else 0
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 6, num_queries, 8, generator=generator)
    k, v = torch.randn(2, 2, 3, num_past + num_queries, 8, generator=generator)[:, :, :3]
    query = torch.arange(num_past, num_past + num_queries)[:, None]
    key = torch.arange(num_past + num_queries)[None]
    mask = (key <= query) & (key > query - window) if window else key <= query
    mask = mask.expand(2, -1, -1)
    if segments is not None:
        mask = mask & (segments[:, :, None] == segments[:, None, :])
    plan = plan_attention(num_queries, num_past, window, segments, torch.device("cpu"), block=block)
    expected = softmax_attention(q, k, v, mask)
    torch.testing.assert_close(attend(q, k, v, plan, 8**-0.5), expected, rtol=1e-4, atol=1e-5)


def test_masks_stay_small_however_long_the_sequence() -> None:
    """A million tokens: a sliding layer has one mask, of a block by a block and its window."""
    plan = plan_attention(1 << 20, 0, 512, None, torch.device("cpu"))
    masks = {id(b.mask): b.mask.numel() for b in plan if b.mask is not None}
    assert list(masks.values()) == [512 * (512 + 511)]
    (full,) = plan_attention(1 << 20, 0, None, None, torch.device("cpu"))
    assert full.mask is None


def test_a_short_sequence_needs_no_mask_at_all() -> None:
    for window in (None, 64):
        (only,) = plan_attention(64, 0, window, None, torch.device("cpu"))
        assert only.causal
        assert only.mask is None


@torch.no_grad()
def packed_and_apart(network: MuseSpark) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(12, VOCAB_SIZE, (1, n), generator=generator) for n in (7, 1, 19, 13)]
    segments = torch.cat([torch.full((1, d.shape[1]), i) for i, d in enumerate(documents)], dim=1)
    apart = torch.cat([network(d) for d in documents], dim=1)
    return network(torch.cat(documents, dim=1), segments=segments), apart


@pytest.mark.parametrize("seed", range(6))
def test_packed_documents_are_blind_to_each_other(seed: int) -> None:
    packed, apart = packed_and_apart(random_network(random_config(seed, layers=4)))
    torch.testing.assert_close(packed, apart, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_positions_may_restart_in_every_document_because_rotary_angles_are_relative() -> None:
    network = random_network(random_config(4, layers=4))
    ids = torch.randint(12, VOCAB_SIZE, (2, 20), generator=torch.Generator().manual_seed(1))
    segments = torch.tensor([[0] * 8 + [1] * 12, [0] * 15 + [1] * 5])
    restarted = torch.stack([torch.cat((torch.arange(a), torch.arange(20 - a))) for a in (8, 15)])
    counted_on = network(ids, segments=segments)
    torch.testing.assert_close(network(ids, segments=segments, positions=restarted), counted_on, rtol=1e-4, atol=1e-4)


def test_segments_and_a_cache_exclude_each_other() -> None:
    network = random_network(random_config(0))
    ids = torch.tensor([[3, 4]])
    with pytest.raises(ValueError, match="cache"):
        network(ids, segments=torch.zeros_like(ids), cache=KVCache(network.config.text))
