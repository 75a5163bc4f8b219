"""Pictures are encoded a piece at a time: running streams go on meanwhile, and the answer is the same."""

from __future__ import annotations

import pytest

from musespark.chat.images import PatchedImage
from musespark.engine.engine import Engine
from musespark.engine.request import Request, Usage
from musespark.engine.runner import Batch, Float32
from musespark.errors import EngineFailed
from tests.engine.driver import Driver, Seen, no_pages_in_use, picture, prompt_of, request
from tests.fakes import HashRunner, hash_continuation

IMAGE = 10
PIECE_S = 0.01
CAT, DOG = picture(30, "cat"), picture(30, "dog")


class PieceRunner(HashRunner):
    """Each image takes `num_pieces` of 10 ms, a step 1 ms and 1 ms for every token, on a clock of its own."""

    def __init__(self, num_pieces: int = 50, **options: int) -> None:
        super().__init__(**options)
        self.num_pieces = num_pieces
        self.now = 0.0
        self.open: list[Encoding] = []

    def forward(self, batch: Batch) -> Float32:
        self.now += 0.001 + 0.001 * len(batch.token_ids)
        return super().forward(batch)

    def start_image(self, image: PatchedImage) -> Encoding:
        self.open.append(Encoding(self, image))
        return self.open[-1]


class Encoding:
    def __init__(self, runner: PieceRunner, image: PatchedImage) -> None:
        self.runner = runner
        self.image = image
        self.num_done = 0

    @property
    def progress(self) -> float:
        return self.num_done / self.runner.num_pieces

    def run(self, budget_s: float | None = None) -> Float32 | None:
        end_s = self.runner.now + (1e9 if budget_s is None else budget_s)
        while True:
            self.num_done += 1
            self.runner.now += PIECE_S
            if self.num_done == self.runner.num_pieces:
                return self.runner.encode_image(self.image)
            if self.runner.now >= end_s:
                return None


def showing(image: PatchedImage, before: int = 5, after: int = 20, **fields: object) -> Request:
    prompt = [*prompt_of(before, 3), *[IMAGE] * image.num_tokens, *prompt_of(after, 4)]
    return request(prompt, 6, images=(image,), image_spans=((before, before + image.num_tokens),), **fields)


def right_answer(asked: Request) -> list[int]:
    return hash_continuation(asked.prompt, 6, images=asked.images, image_spans=asked.image_spans)


def engine_of(runner: PieceRunner, **options: object) -> Engine:
    return Engine(runner, decode_latency_target_s=0.1, clock=lambda: runner.now, **options)


def test_stream_has_its_tokens_in_time_while_a_picture_is_encoded() -> None:
    runner = PieceRunner()
    driver = Driver(engine_of(runner))
    stream = driver.submit(request(prompt_of(10), 300))
    for _ in range(5):
        driver.step()
    asked = showing(CAT)
    seen = driver.submit(asked)
    times = []
    while not seen.tokens:
        before_s, before = runner.now, len(stream.ids())
        driver.step()
        times.append(runner.now - before_s)
        assert len(stream.ids()) == before + 1, "a token in every step"
    assert len(times) >= 10  # half a second in steps of at most 0.1
    assert max(times) <= 0.125
    driver.run()
    assert seen.ids() == right_answer(asked)
    assert stream.ids() == hash_continuation(prompt_of(10), 300)
    assert runner.num_images_encoded == 1


def test_who_comes_while_a_picture_is_encoded_alone_waits_one_step() -> None:
    runner = PieceRunner()
    driver = Driver(engine_of(runner))
    driver.submit(showing(CAT))
    driver.step()
    assert runner.now < 0.2
    late = driver.submit(request(prompt_of(10), 2))
    driver.step()
    assert len(late.ids()) == 1


def test_text_before_a_picture_is_computed_meanwhile() -> None:
    runner = PieceRunner()
    driver = Driver(engine_of(runner, max_batch_tokens=64))
    asked = showing(CAT, before=150)
    seen = driver.submit(asked)
    driver.step()
    assert len(runner.batches[0].token_ids) == 64
    driver.run()
    assert seen.ids() == right_answer(asked)
    assert seen.usage == Usage(200, 0, 30, 6, 0)


def test_one_picture_is_open_at_a_time_and_all_get_theirs() -> None:
    runner = PieceRunner(num_pieces=7)
    driver = Driver(engine_of(runner, image_cache_bytes=0))
    asked = [showing(image, before) for image in (CAT, DOG) for before in (5, 70)]
    seen = [driver.submit(one) for one in asked]
    while driver.engine.has_work:
        driver.step()
        assert sum(0 < encoding.num_done < 7 for encoding in runner.open) <= 1
    for one, answer in zip(asked, seen, strict=True):
        assert answer.ids() == right_answer(one)


@pytest.mark.parametrize("steps", range(1, 9))
def test_picture_of_a_request_that_left_is_given_up(steps: int) -> None:
    runner = PieceRunner()
    driver = Driver(engine_of(runner))
    driver.submit(showing(CAT, id="left"))
    stays = showing(DOG)
    seen = driver.submit(stays)
    for _ in range(steps):
        driver.step()
    driver.cancel("left")
    driver.run()
    assert seen.ids() == right_answer(stays)
    assert 10 * steps <= runner.open[0].num_done <= 10 * steps + 1 or steps >= 5  # a tenth of a second a step
    assert not driver.engine._features.is_busy
    assert no_pages_in_use(driver.engine)


def test_two_who_show_the_same_picture_share_the_work() -> None:
    runner = PieceRunner()
    driver = Driver(engine_of(runner))
    asked = [showing(CAT), showing(CAT, 40)]
    seen: list[Seen] = [driver.submit(one) for one in asked]
    driver.run()
    assert runner.num_images_encoded == 1
    for one, answer in zip(asked, seen, strict=True):
        assert answer.ids() == right_answer(one)


def test_picture_that_fails_in_the_middle_ends_the_request_that_shows_it() -> None:
    class Broken(PieceRunner):
        def encode_image(self, image: PatchedImage) -> Float32:
            if image is CAT:
                raise RuntimeError("scripted failure")
            return super().encode_image(image)

    runner = Broken(num_pieces=20)
    driver = Driver(engine_of(runner))
    broken, well = driver.submit(showing(CAT)), showing(DOG)
    seen = driver.submit(well)
    driver.run()
    assert isinstance(broken.error, EngineFailed)
    assert seen.ids() == right_answer(well)
    assert no_pages_in_use(driver.engine)


def test_preempted_in_the_middle_of_a_picture_it_goes_on_later() -> None:
    runner = PieceRunner(num_pieces=30, num_full_pages=8, num_sliding_pages=8)
    driver = Driver(engine_of(runner, max_running=1))
    low = showing(CAT, priority=1)
    low_seen = driver.submit(low)
    driver.step()
    high = driver.submit(request(prompt_of(100), 20))
    driver.step()
    assert len(high.ids()) == 1
    driver.run()
    assert low_seen.ids() == right_answer(low)
    assert driver.engine.stats().num_preemptions_total == 1
