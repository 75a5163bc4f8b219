"""What goes wrong stays where it went wrong, and everybody hears of it."""

from __future__ import annotations

import numpy as np
import pytest

from musespark.chat.images import PatchedImage
from musespark.engine import sampler
from musespark.engine.engine import Engine
from musespark.engine.request import FinishReason, SampledToken
from musespark.engine.runner import Batch, Float32
from musespark.errors import EngineFailed
from tests.engine.driver import Driver, TokenOutput, no_pages_in_use, picture, prompt_of, request, run_alone
from tests.fakes import FailingRunner, HashRunner, hash_continuation

IMAGE = 10


def test_runner_that_raises_ends_what_runs_and_keeps_what_waits() -> None:
    driver = Driver(Engine(FailingRunner([5]), max_running=2))
    running = [driver.submit(request(prompt_of(100, seed), 20)) for seed in range(2)]
    waiting = [driver.submit(request(prompt_of(100, seed), 20)) for seed in range(2, 5)]
    driver.run()
    for seen in running:
        assert isinstance(seen.error, EngineFailed)
        assert seen.usage is not None
        assert seen.usage.completion_tokens == len(seen.ids()) == 5
    for seed, seen in enumerate(waiting, start=2):
        assert seen.error is None
        assert seen.ids() == hash_continuation(prompt_of(100, seed), 20)
    assert driver.engine.ready
    assert driver.engine.stats().num_failed_total == 2


def test_nothing_cached_before_a_failure_is_trusted_after_it() -> None:
    engine = Engine(FailingRunner([3]))
    driver = Driver(engine)
    driver.submit(request(prompt_of(200), 2))
    driver.run()
    driver.submit(request(prompt_of(200), 9))
    driver.run()
    after = run_alone(engine, request(prompt_of(200), 9))
    assert after.usage is not None
    assert after.usage.cached_tokens == 0
    assert after.ids() == hash_continuation(prompt_of(200), 9)


def test_preempted_request_survives_the_failure_of_others() -> None:
    runner = FailingRunner([], num_full_pages=6, num_sliding_pages=6)
    driver = Driver(Engine(runner, max_batch_tokens=64))
    seen = [driver.submit(request(prompt_of(60, seed), 200)) for seed in range(4)]
    while not (driver.engine.stats().num_preemptions_total and driver.engine.stats().waiting):
        driver.step()
    waiting = {sequence.request.id for sequence in driver.engine._scheduler.waiting}
    runner.fail_on = [runner.num_calls]
    driver.run()
    for seed, (request_id, one) in enumerate(driver.seen.items()):
        if request_id in waiting:
            assert one.ids() == hash_continuation(prompt_of(60, seed), 200)
        else:
            assert isinstance(one.error, EngineFailed)
    assert len(seen) == 4


def test_runner_that_keeps_failing_ends_everything_and_is_not_ready() -> None:
    driver = Driver(Engine(FailingRunner(range(2, 1000)), max_running=2))
    seen = [driver.submit(request(prompt_of(100, seed), 20)) for seed in range(6)]
    driver.run()
    assert all(isinstance(one.error, EngineFailed) for one in seen)
    assert not driver.engine.ready
    assert no_pages_in_use(driver.engine)
    with pytest.raises(EngineFailed, match="restart"):
        driver.submit(request(prompt_of(4)))


class BrokenLogits(HashRunner):
    """NaN for the sequence whose first token is 33."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, batch: Batch) -> Float32:
        logits = super().forward(batch)
        sick = {page for token, page in self._first_pages(batch) if token == 33}
        self.sick = getattr(self, "sick", set()) | sick
        for line, row in zip(logits, batch.logit_rows, strict=True):
            sequence = int(np.searchsorted(batch.query_start, row, side="right")) - 1
            if batch.full_block_table[sequence, 0] in self.sick:
                line[77] = self.value
        return logits

    @staticmethod
    def _first_pages(batch: Batch) -> list[tuple[int, int]]:
        starts = batch.query_start[:-1]
        return [
            (int(batch.token_ids[row]), int(batch.full_block_table[s, 0]))
            for s, row in enumerate(starts)
            if batch.positions[row] == 0
        ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_end_their_own_request(value: float, temperature: float) -> None:
    driver = Driver(Engine(BrokenLogits(value)))
    sick = driver.submit(request([33, *prompt_of(80)], 5, temperature=temperature))
    well = driver.submit(request(prompt_of(80, 1), 5))
    driver.run()
    assert isinstance(sick.error, EngineFailed)
    assert well.ids() == hash_continuation(prompt_of(80, 1), 5)


@pytest.mark.parametrize("broken", ["choose", "with_logprobs"])
def test_sampling_that_raises_ends_its_own_request(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = getattr(sampler, broken)

    def fail_for_the_sick(*arguments: object) -> object:
        if (
            isinstance(arguments[-1], sampler.SamplingState) or arguments[-1] == 3
        ):  # the other is greedy, without logprobs
            raise FloatingPointError("no")
        return whole(*arguments)

    monkeypatch.setattr(sampler, broken, fail_for_the_sick)
    driver = Driver(Engine(HashRunner()))
    sick = driver.submit(request(prompt_of(80), 5, temperature=1.0, logprobs=3))
    well = driver.submit(request(prompt_of(80, 1), 5))
    driver.run()
    assert isinstance(sick.error, EngineFailed)
    assert "FloatingPointError" in sick.error.message
    assert well.ids() == hash_continuation(prompt_of(80, 1), 5)
    assert driver.engine.ready
    assert no_pages_in_use(driver.engine)


class BrokenOutput(TokenOutput):
    """Raises where it is told to."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def push(self, token: SampledToken) -> FinishReason | None:
        self._fail("push")
        return super().push(token)

    def finish(self, stop_token: int | None) -> None:
        self._fail("finish")

    def take(self) -> list[object]:
        self._fail("take")
        return super().take()

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise ValueError("no")


@pytest.mark.parametrize("where", ["push", "take", "finish"])
@pytest.mark.parametrize("n", [1, 3])
def test_output_that_raises_ends_its_own_request(where: str, n: int) -> None:
    driver = Driver(Engine(HashRunner()))
    outputs = [TokenOutput(), BrokenOutput(where), TokenOutput()]
    sick = driver.submit(request(prompt_of(80), 5, n=n, make_output=lambda index: outputs[index if n > 1 else 1]))
    well = driver.submit(request(prompt_of(80, 1), 9))
    driver.run()
    assert isinstance(sick.error, EngineFailed)
    assert well.ids() == hash_continuation(prompt_of(80, 1), 9)
    assert no_pages_in_use(driver.engine)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_output_that_raises_while_it_is_cancelled_is_still_ended(steps: int) -> None:
    driver = Driver(Engine(HashRunner()))
    sick = driver.submit(request(prompt_of(80), 5, n=3, id="x", make_output=lambda index: BrokenOutput("finish")))
    for _ in range(steps):
        driver.step()
    driver.cancel("x")
    assert isinstance(sick.error, EngineFailed)
    assert not driver.engine.has_work


def test_output_that_cannot_be_made_leaves_nothing_behind() -> None:
    engine = Engine(HashRunner())

    def make_output(index: int) -> TokenOutput:
        if index == 1:
            raise ValueError("no")
        return TokenOutput()

    with pytest.raises(ValueError, match="no"):
        engine.submit(request(prompt_of(4), n=2, make_output=make_output))
    assert not engine.has_work
    engine.check_integrity()


class BlindRunner(HashRunner):
    """Can't encode the image called "bad"; encodes "long" to the wrong shape."""

    def encode_image(self, image: PatchedImage) -> Float32:
        if image.digest.startswith(b"bad"):
            raise MemoryError
        features = super().encode_image(image)
        return features[1:] if image.digest.startswith(b"long") else features


@pytest.mark.parametrize("name", ["bad", "long"])
def test_image_that_cannot_be_encoded_ends_its_own_request(name: str) -> None:
    driver = Driver(Engine(BlindRunner()))
    prompt = [*prompt_of(4), *[IMAGE] * 6, 50]
    good, bad = (picture(6, "good"),), (picture(6, name),)
    sick = driver.submit(request(prompt, 5, n=2, images=bad, image_spans=((4, 10),)))
    well = driver.submit(request(prompt, 5, images=good, image_spans=((4, 10),)))
    driver.run()
    assert isinstance(sick.error, EngineFailed)
    assert well.ids() == hash_continuation(prompt, 5, images=good, image_spans=((4, 10),))


def test_only_an_image_that_cannot_be_encoded_in_the_batch() -> None:
    engine = Engine(BlindRunner())
    seen = run_alone(engine, request([IMAGE] * 3, 5, images=(picture(3, "bad"),), image_spans=((0, 3),)))
    assert isinstance(seen.error, EngineFailed)
    assert engine.ready


class ForgetfulRunner(HashRunner):
    """Can encode each image once."""

    def encode_image(self, image: PatchedImage) -> Float32:
        self.encoded = getattr(self, "encoded", set())
        if image.digest in self.encoded:
            raise MemoryError
        self.encoded.add(image.digest)
        return super().encode_image(image)


def test_image_that_fails_for_several_choices_at_once_is_one_failure() -> None:
    # The image is not in a complete page, so the later choices need it again, when another has taken its place.
    driver = Driver(Engine(ForgetfulRunner(), image_cache_bytes=1))
    prompt = [*prompt_of(4), *[IMAGE] * 6, 50]
    sick = driver.submit(request(prompt, 5, n=3, images=(picture(6, "cat"),), image_spans=((4, 10),)))
    well = driver.submit(request(prompt, 5, images=(picture(6, "dog"),), image_spans=((4, 10),)))
    driver.run()
    assert isinstance(sick.error, EngineFailed)
    assert len(well.ids()) == 5
    assert driver.engine.stats().num_failed_total == 1
    assert driver.engine.ready
