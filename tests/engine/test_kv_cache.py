"""The arithmetic of pages against counting them one by one, and the three states of a page."""

from __future__ import annotations

import pytest

from musespark.engine.kv_cache import BlockTable, KVCache, PageCounts, PageGroup
from musespark.engine.prefix import PrefixTree
from musespark.engine.runner import NO_PAGE
from musespark.engine.view import Everything, Nothing, OwnChunk, View, Window, pages_for
from tests.fakes import toy_config

SPANS = [1, 2, 3, 48, 63, 64, 65, 66, 96, 100, 127, 128, 129, 130, 200, 512]
VIEWS = [*map(Window, SPANS), *map(OwnChunk, SPANS)]


def visible_keys(position: int, view: View) -> list[int]:
    """Key by key, by the definition of each kind."""
    if isinstance(view, Window):
        return [key for key in range(position + 1) if position - key < view.size]
    assert isinstance(view, OwnChunk)
    return [key for key in range(position + 1) if key // view.size == position // view.size]


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_visible_pages_are_those_of_the_visible_keys(view: View) -> None:
    group = PageGroup("sliding", 4, view)
    for position in range(700):
        keys = visible_keys(position, view)
        assert view.first_key(position) == keys[0]
        assert group.first_visible(position) == keys[0] // 64


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_pages_at_once_is_the_most_that_any_position_sees(view: View) -> None:
    most = 0
    for num_tokens in range(1, 700):
        position = num_tokens - 1
        most = max(most, position // 64 - visible_keys(position, view)[0] // 64 + 1)
        assert view.pages_at_once(num_tokens) == most


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_the_longest_sequence_is_the_last_one_whose_pages_are_enough(view: View) -> None:
    """Chunks that do not end with a page lie anew in their pages for up to 64 chunks."""
    for num_pages in range(1, 10):
        longest = view.longest(num_pages)
        if longest < 2**31 - 1:
            assert view.pages_at_once(longest) == num_pages < view.pages_at_once(longest + 1)
        else:
            assert view.pages_at_once(1_000_000) <= num_pages


def test_full_layers_see_and_need_everything_and_absent_ones_nothing() -> None:
    group = PageGroup("full", 4, Everything())
    assert group.first_visible(1000) == 0
    assert [Everything().pages_at_once(n) for n in (1, 64, 65)] == [1, 1, 2] == [pages_for(n) for n in (1, 64, 65)]
    assert [Everything().longest(n) for n in (0, 1, 3)] == [0, 64, 192]
    assert Nothing().pages_at_once(10**9) == 0
    assert Nothing().longest(0) == 2**31 - 1


def test_the_arithmetic_of_ten_million_tokens_and_of_tables_beyond_two_to_the_31() -> None:
    """Numbers by hand: Scout's chunk of 8,192 is 128 pages; 10,485,760 tokens are 1,280 chunks, 163,840 pages."""
    chunk = OwnChunk(8192)
    assert [chunk.first_key(p) for p in (8191, 8192, 8193, 10_485_759)] == [0, 8192, 8192, 10_477_568]
    assert chunk.pages_at_once(10_485_760) == 128
    assert Everything().pages_at_once(10_485_760) == 163_840
    assert Everything().longest(163_840) == 10_485_760
    far = 2**31 * 64 + 5  # page 2^31 of a sequence
    assert PageGroup("sliding", 1, chunk).first_visible(far) == 2**31
    assert PageGroup("sliding", 1, Window(70)).first_visible(far) == 2**31 - 1
    assert pages_for(far) == 2**31 + 1


def chunked_table(chunk: int, num_tokens: int) -> tuple[KVCache, BlockTable]:
    """A sequence of so many tokens over one chunked and one full layer, computed 10 tokens at a time."""
    kinds = ("chunked_attention", "full_attention")
    text = toy_config(layer_types=kinds, attention_chunk_size=chunk, sliding_window=0).text
    cache = KVCache(text, 64, 64)
    table = cache.new_table(b"", lambda page: bytes([page]))
    for end in [*range(10, num_tokens, 10), num_tokens]:
        cache.extend(table, end)
        cache.commit(table, end)
    return cache, table


@pytest.mark.parametrize(
    ("chunk", "num_tokens", "kept"),
    [(128, 127, [0, 1]), (128, 128, []), (128, 129, [2]), (100, 99, [0, 1]), (100, 100, [1]), (100, 101, [1])],
)
def test_pages_of_a_chunk_that_has_ended_are_given_back(chunk: int, num_tokens: int, kept: list[int]) -> None:
    """What is kept is what the token that comes next can see. Chunks of 100 begin in the middle of a page."""
    cache, table = chunked_table(chunk, num_tokens)
    assert [page for page, page_id in enumerate(table.sliding) if page_id != NO_PAGE] == kept
    assert NO_PAGE not in table.full
    cache.check_integrity([table])
    assert cache.sliding.counts.used == len(kept)
    assert cache.sliding.counts.cached == num_tokens // 64 - len([page for page in kept if page < num_tokens // 64])


@pytest.mark.parametrize("chunk", [100, 128, 192])
def test_a_cached_prefix_needs_the_sliding_pages_of_its_last_chunk_only(chunk: int) -> None:
    cache, table = chunked_table(chunk, 300)
    cache.release(table)
    for num_pages in (4, 3, 2, 1):
        again = cache.new_table(b"", lambda page: bytes([page]))
        assert cache.attach(again, num_pages) == num_pages
        first = num_pages * 64 // chunk * chunk // 64
        assert [page for page, page_id in enumerate(again.sliding) if page_id != NO_PAGE] == list(
            range(first, num_pages)
        )
        cache.check_integrity([again])
        cache.release(again)


def test_page_goes_from_free_to_used_to_cached_and_is_evicted_last_used_last() -> None:
    tree = PrefixTree()
    names = [tree.child(tree.root(b""), bytes([i])) for i in range(4)]
    group = PageGroup("full", 3, Everything())
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
    group = PageGroup("full", 3, Everything())
    first, second = group.allocate(), group.allocate()
    group.publish(first, name)
    group.publish(second, name)
    assert group.lookup(name) == first
    group.release(second)
    group.release(first)
    assert group.counts == PageCounts(free=2, used=0, cached=1)


@pytest.mark.parametrize(
    ("kind", "num_out_of_view"), [("full_attention", 0), ("sliding_attention", 2), ("chunked_attention", 4)]
)
def test_model_with_one_kind_of_layer_needs_pages_of_that_kind_only(kind: str, num_out_of_view: int) -> None:
    text = toy_config(layer_types=(kind, kind), attention_chunk_size=128).text  # type: ignore[arg-type]
    full = kind == "full_attention"
    cache = KVCache(text, 8 if full else 0, 0 if full else 8)
    table = cache.new_table(b"", lambda page: bytes([page]))
    assert cache.can_start(table, 300, spare=0)
    cache.extend(table, 300)
    cache.commit(table, 300)
    assert (table.full if full else table.sliding).count(NO_PAGE) == num_out_of_view
    assert list(table.sliding if full else table.full) == [NO_PAGE] * 5
    cache.release(table)
    again = cache.new_table(b"", lambda page: bytes([page]))
    assert cache.attach(again, 4) == 4
    cache.check_integrity([again])
    assert cache.context_length == (512 if full else 2**31 - 1)
