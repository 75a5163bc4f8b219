"""Who may share pages with whom, for how long, and that the books balance."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from musespark.engine.engine import Engine
from musespark.engine.prefix import PrefixTree
from musespark.errors import EngineFailed
from tests.engine.driver import Driver, picture, prompt_of, request, run_alone
from tests.fakes import HashRunner, chunked_config, hash_continuation

IMAGE = 10


def cached(engine: Engine, prompt: list[int], **fields: object) -> int:
    seen = run_alone(engine, request(prompt, 2, **fields))
    assert seen.error is None
    assert seen.usage is not None
    return seen.usage.cached_tokens


def test_longest_common_prefix_in_whole_pages_is_reused() -> None:
    engine = Engine(HashRunner())
    cached(engine, prompt_of(300))
    assert cached(engine, prompt_of(300)[:200] + prompt_of(50, 1)) == 192
    assert cached(engine, prompt_of(300)[:63] + prompt_of(50, 1)) == 0


def test_at_least_one_token_of_the_prompt_is_computed() -> None:
    engine = Engine(HashRunner())
    cached(engine, prompt_of(128))
    assert cached(engine, prompt_of(128)) == 64
    assert cached(engine, [*prompt_of(128), 50]) == 128


def test_answer_is_reused_by_the_next_turn() -> None:
    engine = Engine(HashRunner())
    answer = run_alone(engine, request(prompt_of(60), 80)).ids()
    # 140 tokens so far, of which the last was never computed.
    assert cached(engine, prompt_of(60) + answer + prompt_of(20, 1)) == 128


def test_two_organisations_never_share() -> None:
    engine = Engine(HashRunner())
    assert cached(engine, prompt_of(300), salt=b"one") == 0
    assert cached(engine, prompt_of(300), salt=b"two") == 0
    assert cached(engine, prompt_of(300), salt=b"") == 0
    assert cached(engine, prompt_of(300), salt=b"one") == 256


@pytest.mark.parametrize("size", [0, 1])
def test_forced_hash_collision_gives_no_hit(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = PrefixTree._digest
    monkeypatch.setattr(PrefixTree, "_digest", staticmethod(lambda parent, content: honest(parent, content)[:size]))
    engine = Engine(HashRunner(num_full_pages=300, num_sliding_pages=300))
    last_page = prompt_of(70, 99)
    for seed in range(16):  # all end alike, so that a chain of colliding parents would lead to a wrong page
        prompt = prompt_of(64, seed) + last_page
        for _ in range(2):
            seen = run_alone(engine, request(prompt, 3, salt=bytes([seed % 3])))
            assert seen.ids() == hash_continuation(prompt, 3)


def test_evicted_parent_does_not_lend_its_children_to_a_collision(monkeypatch: pytest.MonkeyPatch) -> None:
    by_first_token = staticmethod(lambda parent, content: parent[:8] + bytes([len(parent)]) + content[4:8])
    monkeypatch.setattr(PrefixTree, "_digest", by_first_token)
    tree = PrefixTree()
    one = tree.child(tree.root(b""), b"0000same")
    below_one = tree.child(one, b"0000next")
    del one
    gc.collect()
    other = tree.child(tree.root(b""), b"1111same")
    assert tree.child(other, b"0000next") is not below_one


def test_least_recently_used_prefix_is_evicted_first() -> None:
    engine = Engine(HashRunner(num_full_pages=8, num_sliding_pages=64))
    old, recent = prompt_of(150, 1), prompt_of(150, 2)
    cached(engine, old)
    cached(engine, recent)
    assert cached(engine, old) == 128  # now `recent` is the older one
    cached(engine, prompt_of(300, 3))  # 5 pages; 4 were not cached
    assert cached(engine, old) == 128
    assert cached(engine, recent) < 128


def test_pages_with_references_are_never_evicted() -> None:
    driver = Driver(Engine(HashRunner(num_full_pages=10, num_sliding_pages=10)))
    long = driver.submit(request(prompt_of(130), 250))
    for seed in range(1, 30):
        driver.submit(request(prompt_of(120, seed), 3))
    driver.run()
    assert long.ids() == hash_continuation(prompt_of(130), 250)


def test_hit_needs_the_sliding_pages_of_the_window() -> None:
    # Each run of 500 tokens passes 8 sliding pages through 8, so of `first` only full pages remain.
    engine = Engine(HashRunner(num_full_pages=64, num_sliding_pages=8))
    first = prompt_of(500, 1)
    cached(engine, first)
    assert cached(engine, first) == 448
    cached(engine, prompt_of(510, 2))
    assert cached(engine, first) == 0
    assert run_alone(engine, request(first, 9)).ids() == hash_continuation(first, 9)


def test_hit_at_the_border_of_a_chunk_needs_no_sliding_pages() -> None:
    # As above, but of `first` the full pages are worth something: nothing before position 384 is seen from there.
    engine = Engine(HashRunner(num_full_pages=64, num_sliding_pages=8, config=chunked_config(128)))
    first = prompt_of(500, 1)
    cached(engine, first)
    assert cached(engine, first) == 448
    cached(engine, prompt_of(510, 2))
    assert cached(engine, first) == 384
    seen = run_alone(engine, request(first, 9))
    assert seen.ids() == hash_continuation(first, 9, config=chunked_config(128))


def test_pages_of_a_chunk_are_released_after_the_step_that_ends_it() -> None:
    driver = Driver(Engine(HashRunner(config=chunked_config(256))))
    driver.submit(request(prompt_of(500), 30))
    driver.step()
    assert driver.engine.stats().sliding_pages.used == 4  # position 500 sees 256 and later
    for _ in range(11):
        driver.step()
    assert driver.engine.stats().sliding_pages.used == 4
    driver.step()  # the token at 511 is computed, and the next one sees none of that
    assert driver.engine.stats().sliding_pages.used == 0
    assert driver.engine.stats().full_pages.used == 8


def test_sliding_pages_out_of_the_window_are_released_after_the_step() -> None:
    driver = Driver(Engine(HashRunner()))
    driver.submit(request(prompt_of(1000), 10))
    driver.step()
    driver.step()
    stats = driver.engine.stats()
    assert stats.full_pages.used == 16
    assert stats.sliding_pages.used == 3  # position 1,000 sees 873 and later: pages 13, 14 and 15
    driver.run()


def test_same_prompt_with_another_image_is_another_prefix() -> None:
    engine = Engine(HashRunner())
    prompt = [*prompt_of(20), *[IMAGE] * 60, *prompt_of(60, 1)]
    spans = ((20, 80),)
    assert cached(engine, prompt, images=(picture(60, "cat"),), image_spans=spans) == 0
    assert cached(engine, prompt, images=(picture(60, "dog"),), image_spans=spans) == 0
    assert cached(engine, prompt, images=(picture(60, "cat"),), image_spans=spans) == 128


def test_images_in_another_order_are_another_prefix() -> None:
    # 30 + 34 rows against 34 + 30 rows: the same token ids in the same page.
    engine = Engine(HashRunner())
    prompt = [*[IMAGE] * 64, *prompt_of(10)]
    one, other = picture(30, "one"), picture(34, "other")
    assert cached(engine, prompt, images=(one, other), image_spans=((0, 30), (30, 64))) == 0
    assert cached(engine, prompt, images=(other, one), image_spans=((0, 34), (34, 64))) == 0
    assert cached(engine, prompt, images=(one, other), image_spans=((0, 30), (30, 64))) == 64


def test_image_that_only_reaches_into_a_page_counts_there() -> None:
    engine = Engine(HashRunner())
    prompt = [*prompt_of(60), *[IMAGE] * 20, *prompt_of(60, 1)]
    spans = ((60, 80),)
    assert cached(engine, prompt, images=(picture(20, "cat"),), image_spans=spans) == 0
    assert cached(engine, prompt, images=(picture(20, "dog"),), image_spans=spans) == 0
    later = [*prompt_of(64), *[IMAGE] * 20, *prompt_of(60, 1)]  # the same rest after another first page
    assert cached(engine, later, images=(picture(20, "dog"),), image_spans=((64, 84),)) == 0


def test_long_prefix_is_freed_without_recursion() -> None:
    tree = PrefixTree()
    prefix = tree.root(b"")
    for page in range(50_000):  # 3.2 million tokens
        prefix = tree.child(prefix, page.to_bytes(8, "little"))
    del prefix
    gc.collect()
    assert len(tree._nodes) == 0


@pytest.mark.parametrize("group", ["full", "sliding"])
def test_integrity_check_notices_a_lost_and_a_doubled_page(group: str) -> None:
    driver = Driver(Engine(HashRunner()))
    driver.submit(request(prompt_of(100), 5))
    driver.step()
    pages = getattr(driver.engine._cache, group)
    lost = pages._free.pop()
    with pytest.raises(EngineFailed, match=f"{group} pages are inconsistent: 63 free|{group}.* are not 64"):
        driver.engine.check_integrity()
    pages._free += [lost, lost]
    with pytest.raises(EngineFailed, match="in two states"):
        driver.engine.check_integrity()
    pages._free.pop()
    driver.engine.check_integrity()
    pages._references[lost] += 1
    with pytest.raises(EngineFailed, match="references differ"):
        driver.engine.check_integrity()


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    engine = Engine(HashRunner(num_full_pages=8, num_sliding_pages=64))
    cached(engine, prompt_of(300, 1))  # 5 pages, 4 of them complete
    cached(engine, prompt_of(300, 2))  # needs 5, of which 4 are free
    assert cached(engine, prompt_of(300, 1)) == 192


def test_nothing_is_reused_after_logits_that_are_not_numbers() -> None:
    runner = HashRunner()
    engine = Engine(runner)
    cached(engine, prompt_of(300))
    sound = runner.forward
    runner.forward = lambda batch: sound(batch) * np.float32("nan")  # type: ignore[method-assign]
    run_alone(engine, request(prompt_of(10)))
    runner.forward = sound  # type: ignore[method-assign]
    assert cached(engine, prompt_of(300)) == 0
