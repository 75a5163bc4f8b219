"""Images in the prompt: rows replaced exactly where they belong, encoded when needed and no more often."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from musespark.chat.images import PatchedImage
from musespark.engine.engine import Engine
from musespark.engine.request import Request, Usage
from musespark.errors import InvalidImage, InvalidRequest, Overloaded
from musespark.model.presets import preset
from tests.engine.driver import Driver, picture, prompt_of, request, run_alone
from tests.fakes import HashRunner, hash_continuation, toy_config

IMAGE = 10
CAT, DOG = picture(30, "cat"), picture(50, "dog")
PROMPT = [*prompt_of(20), *[IMAGE] * 30, *prompt_of(5, 1), *[IMAGE] * 50, *prompt_of(7, 2)]
SPANS = ((20, 50), (55, 105))


def pictured(max_tokens: int = 6, images: tuple = (CAT, DOG), **fields: object):
    return request(PROMPT, max_tokens, images=images, image_spans=SPANS, **fields)


@pytest.mark.parametrize("max_batch_tokens", [1, 7, 20, 30, 64, 512])
def test_chunks_may_cut_images_anywhere(max_batch_tokens: int) -> None:
    engine = Engine(HashRunner(), max_batch_tokens=max_batch_tokens, max_running=1)
    seen = run_alone(engine, pictured())
    assert seen.ids() == hash_continuation(PROMPT, 6, images=(CAT, DOG), image_spans=SPANS)
    assert seen.usage == Usage(112, 0, 80, 6, 0)


def test_images_beside_text_and_other_images() -> None:
    driver = Driver(Engine(HashRunner(), max_batch_tokens=50))
    plain = driver.submit(request(prompt_of(90, 3), 30))
    two = driver.submit(pictured())
    other = picture(30, "emu")
    swapped = driver.submit(pictured(images=(other, DOG)))
    driver.run()
    assert plain.ids() == hash_continuation(prompt_of(90, 3), 30)
    assert two.ids() == hash_continuation(PROMPT, 6, images=(CAT, DOG), image_spans=SPANS)
    assert swapped.ids() == hash_continuation(PROMPT, 6, images=(other, DOG), image_spans=SPANS)


def test_images_are_encoded_only_when_their_chunk_comes() -> None:
    runner = HashRunner()
    driver = Driver(Engine(runner, max_batch_tokens=25, max_running=1))
    driver.submit(pictured())
    encoded = []
    for _ in range(5):
        driver.step()
        encoded.append(runner.num_images_encoded)
    assert encoded == [1, 1, 2, 2, 2]
    driver.run()


def test_image_is_encoded_once_for_all_who_show_it_in_one_organisation() -> None:
    runner = HashRunner()
    engine = Engine(runner)
    for _ in range(2):
        run_alone(engine, request([*[IMAGE] * 30, 77], images=(CAT,), image_spans=((0, 30),)))
    assert runner.num_images_encoded == 1
    run_alone(engine, request([*[IMAGE] * 30, 77], images=(CAT,), image_spans=((0, 30),), salt=b"other"))
    assert runner.num_images_encoded == 2


def test_cached_prefix_needs_no_encoding_at_all() -> None:
    runner = HashRunner()
    engine = Engine(runner, image_cache_bytes=0)
    prompt = [*[IMAGE] * 50, *prompt_of(30)]
    for _ in range(2):
        seen = run_alone(engine, request(prompt, images=(DOG,), image_spans=((0, 50),)))
    assert runner.num_images_encoded == 1
    assert seen.usage == Usage(80, 64, 50, 8, 0, cached_image_tokens=50)
    assert (seen.usage.computed_text_tokens, seen.usage.computed_image_tokens) == (16, 0)


def test_request_that_ends_within_an_image_says_how_much_of_it_was_computed() -> None:
    driver = Driver(Engine(HashRunner(), max_batch_tokens=20))
    prompt = [*prompt_of(10), *[IMAGE] * 50]
    seen = driver.submit(request(prompt, id="x", images=(DOG,), image_spans=((10, 60),)))
    driver.step()
    driver.cancel("x")
    assert seen.usage == Usage(20, 0, 10, 0, 0)
    assert (seen.usage.computed_text_tokens, seen.usage.computed_image_tokens) == (10, 10)


def test_features_stay_within_their_bytes_and_the_oldest_goes_first() -> None:
    row_bytes = 64 * 4
    runner = HashRunner()
    engine = Engine(runner, image_cache_bytes=100 * row_bytes)

    def shows(name: str) -> int:
        before = runner.num_images_encoded
        prompt = [*[IMAGE] * 50, 77]
        run_alone(engine, request(prompt, images=(picture(50, name),), image_spans=((0, 50),)))
        assert engine.stats().image_features_bytes <= 100 * row_bytes
        return runner.num_images_encoded - before

    assert [shows(name) for name in "ababcabc"] == [1, 1, 0, 0, 1, 1, 1, 1]
    assert [shows(name) for name in "bcbab"] == [0, 0, 0, 1, 0]


def test_image_larger_than_the_cache_still_works_and_is_encoded_once_while_in_use() -> None:
    runner = HashRunner()
    engine = Engine(runner, image_cache_bytes=1, max_batch_tokens=8, max_running=1)
    seen = run_alone(engine, request([*[IMAGE] * 50, 77], 3, images=(DOG,), image_spans=((0, 50),)))
    assert seen.ids() == hash_continuation([*[IMAGE] * 50, 77], 3, images=(DOG,), image_spans=((0, 50),))
    assert runner.num_images_encoded == 1


def test_prompt_of_nothing_but_an_image() -> None:
    seen = run_alone(Engine(HashRunner()), request([IMAGE] * 50, 4, images=(DOG,), image_spans=((0, 50),)))
    assert seen.ids() == hash_continuation([IMAGE] * 50, 4, images=(DOG,), image_spans=((0, 50),))


def test_preempted_image_is_computed_again() -> None:
    driver = Driver(Engine(HashRunner(num_full_pages=6, num_sliding_pages=6), max_batch_tokens=64))
    older = driver.submit(request(prompt_of(60), 200))
    seen = driver.submit(pictured(150))
    driver.run()
    assert driver.engine.stats().num_preemptions_total > 0
    assert older.ids() == hash_continuation(prompt_of(60), 200)
    assert seen.ids() == hash_continuation(PROMPT, 150, images=(CAT, DOG), image_spans=SPANS)


def test_pixels_that_wait_are_bounded_on_both_sides_and_text_is_not() -> None:
    size_bytes = picture(4).patches.nbytes
    driver = Driver(Engine(HashRunner(), max_pixel_bytes=2 * size_bytes))

    def showing(num_tokens: int) -> Request:
        prompt = [*prompt_of(3), *[IMAGE] * num_tokens, 50]
        return request(prompt, 2, images=(picture(num_tokens, str(num_tokens)),), image_spans=((3, 3 + num_tokens),))

    driver.submit(showing(4))
    driver.submit(showing(4))
    with pytest.raises(Overloaded) as refusal:
        driver.submit(showing(1))
    assert 100 <= refusal.value.retry_after_ms <= 60_000
    assert driver.engine.stats().num_overloaded_total == 1
    driver.submit(request(prompt_of(10), 2))
    driver.run()
    driver.submit(showing(9))  # alone it may be as large as the context allows
    driver.run()
    driver.submit(showing(1))
    driver.run()
    assert all(seen.reasons == {0: "length"} for seen in driver.seen.values())


def test_a_model_without_a_vision_tower_refuses_images_and_reads_their_token_as_text() -> None:
    config = replace(toy_config(), vision=None)
    driver = Driver(Engine(HashRunner(config=config)))
    with pytest.raises(InvalidImage, match="reads text only") as refusal:
        driver.submit(pictured())
    assert (refusal.value.code, refusal.value.status, refusal.value.param) == ("invalid_image", 400, "messages")
    seen = driver.submit(request([*prompt_of(5), IMAGE, *prompt_of(3)], 2))
    driver.run()
    assert seen.usage == Usage(9, 0, 0, 2, 0)


@pytest.mark.parametrize("side", [22, 24, 26])
def test_tiles_must_have_the_size_that_the_tower_of_llama4_takes(side: int) -> None:
    config = preset("toy-llama4")
    assert config.tile_vision is not None
    config = replace(toy_config(), vision=None, tile_vision=replace(config.tile_vision, image_size=336))
    image = PatchedImage(np.zeros((side * side, 588), np.float32), (side, side), b"tile")
    driver = Driver(Engine(HashRunner(config=config)))
    shown = request(
        [*prompt_of(3), *[IMAGE] * image.num_tokens], 1, images=(image,), image_spans=((3, 3 + image.num_tokens),)
    )
    if side != 24:
        with pytest.raises(InvalidRequest, match=f"{side} x {side} patches; this model reads tiles of 24 x 24"):
            driver.submit(shown)
        return
    seen = driver.submit(shown)
    driver.run()
    assert seen.usage == Usage(147, 0, 144, 1, 0)


@pytest.mark.parametrize("rows", [143, 145])
def test_rows_without_a_tile_and_tiles_without_rows_are_refused_for_llama4_too(rows: int) -> None:
    """The token of a patch without an image would be read as an ordinary one."""
    tower = preset("toy-llama4").tile_vision
    assert tower is not None
    config = replace(toy_config(), vision=None, tile_vision=replace(tower, image_size=336))
    image = PatchedImage(np.zeros((576, 588), np.float32), (24, 24), b"tile")
    prompt = [*prompt_of(3), *[IMAGE] * rows, *prompt_of(4)]
    with pytest.raises(InvalidRequest, match=f"the prompt has {rows} image rows, .* the images have 144"):
        Driver(Engine(HashRunner(config=config))).submit(request(prompt, 1, images=(image,), image_spans=((3, 147),)))
