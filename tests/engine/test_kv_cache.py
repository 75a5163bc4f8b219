"""The arithmetic of pages against counting them one by one, and the three states of a page."""

from __future__ import annotations

import pytest

from musespark.engine.kv_cache import KVCache, PageCounts, PageGroup, pages_for
from musespark.engine.prefix import PrefixTree
from musespark.engine.runner import NO_PAGE
from tests.fakes import toy_config

WINDOWS = [1, 2, 63, 64, 65, 66, 127, 128, 129, 130, 200, 512]


def visible_pages(position: int, window: int) -> set[int]:
    return {key // 64 for key in range(max(0, position - window + 1), position + 1)}


@pytest.mark.parametrize("window", WINDOWS)
def test_visible_pages_are_those_of_the_visible_keys(window: int) -> None:
    group = PageGroup("sliding", 4, window)
    for position in range(700):
        assert group.first_visible(position) == min(visible_pages(position, window))


@pytest.mark.parametrize("window", WINDOWS)
def test_pages_at_once_is_the_most_that_any_position_sees(window: int) -> None:
    group = PageGroup("sliding", 4, window)
    most = 0
    for num_tokens in range(1, 700):
        most = max(most, len(visible_pages(num_tokens - 1, window)))
        assert group.pages_at_once(num_tokens) == most


def test_full_group_sees_and_needs_everything() -> None:
    group = PageGroup("full", 4, None)
    assert group.first_visible(1000) == 0
    assert [group.pages_at_once(n) for n in (1, 64, 65)] == [1, 1, 2] == [pages_for(n) for n in (1, 64, 65)]


def test_page_goes_from_free_to_used_to_cached_and_is_evicted_last_used_last() -> None:
    tree = PrefixTree()
    names = [tree.child(tree.root(b""), bytes([i])) for i in range(4)]
    group = PageGroup("full", 3, None)
    pages = [group.allocate() for _ in range(3)]
    assert group.counts == PageCounts(free=0, used=3, cached=0)
    for page, name in zip(pages, names, strict=False):
        group.publish(page, name)
    for page in (pages[1], pages[0], pages[2]):
        group.release(page)
    assert group.counts == PageCounts(free=0, used=0, cached=3)
    group.share(pages[1])  # used again, so no longer the oldest
    group.release(pages[1])
    assert [group.allocate() for _ in range(3)] == [pages[0], pages[2], pages[1]]
    assert [group.lookup(name) for name in names] == [None] * 4


def test_second_page_of_the_same_prefix_stays_private() -> None:
    tree = PrefixTree()
    name = tree.child(tree.root(b""), b"x")
    group = PageGroup("full", 3, None)
    first, second = group.allocate(), group.allocate()
    group.publish(first, name)
    group.publish(second, name)
    assert group.lookup(name) == first
    group.release(second)
    group.release(first)
    assert group.counts == PageCounts(free=2, used=0, cached=1)


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
def test_model_with_one_kind_of_layer_needs_pages_of_that_kind_only(kind: str) -> None:
    text = toy_config(layer_types=(kind, kind)).text  # type: ignore[arg-type]
    full = kind == "full_attention"
    cache = KVCache(text, 8 if full else 0, 0 if full else 8)
    table = cache.new_table(b"", lambda page: bytes([page]))
    assert cache.can_start(table, 300, spare=0)
    cache.extend(table, 300)
    cache.commit(table, 300)
    assert (table.full if full else table.sliding).count(NO_PAGE) == (0 if full else 2)
    assert list(table.sliding if full else table.full) == [NO_PAGE] * 5
    cache.release(table)
    again = cache.new_table(b"", lambda page: bytes([page]))
    assert cache.attach(again, 4) == 4
    cache.check_integrity([again])
    assert cache.context_length == (512 if full else 2**31 - 1)
