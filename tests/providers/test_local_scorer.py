"""The scorer against the obvious one: every continuation alone through the torch network."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from musespark.chat.formats import make_format
from musespark.chat.messages import Image, Message, Text
from musespark.chat.prompt import Prompt
from musespark.chat.tokenizer import Tokenizer
from musespark.errors import ContextTooLong
from musespark.model.network import MuseSpark
from musespark.model.presets import preset
from musespark.providers.local_scorer import LocalScorer
from tests.evals.reference_scorer import ReferenceScorer
from tests.native.runners import native

TOKENIZER = Tokenizer.bytes_only()


@pytest.fixture(scope="module")
def network() -> MuseSpark:
    torch.set_num_threads(1)
    network = MuseSpark(preset("toy"))
    network.init_weights(seed=3)
    return network.eval()


@pytest.fixture(scope="module")
def scorer(network: MuseSpark) -> LocalScorer:
    runner = native(network, num_full_pages=15, num_sliding_pages=15)
    return LocalScorer(runner, TOKENIZER, make_format("muse_spark", TOKENIZER))


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(32, 127, size=count).tolist()


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 129, 600])
def test_scores_are_those_of_every_continuation_alone(network: MuseSpark, scorer: LocalScorer, length: int) -> None:
    prompt = Prompt(tokens(length))
    continuations = [tokens(n, seed=n) for n in (1, 2, 7, 64, 65, 130)]
    expected = ReferenceScorer(network).log_probs(prompt, continuations)
    assert scorer.log_probs(prompt, continuations) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_a_continuation_longer_than_a_step_goes_through_several(network: MuseSpark, scorer: LocalScorer) -> None:
    prompt, long = Prompt(tokens(10)), tokens(900, seed=1)
    expected = ReferenceScorer(network).log_probs(prompt, [long])
    assert scorer.log_probs(prompt, [long]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("before", ["", "a long text before the picture " * 5])
def test_pictures_in_shared_pages_and_behind_them_are_seen(
    network: MuseSpark, scorer: LocalScorer, before: str
) -> None:
    file = io.BytesIO()
    PillowImage.new("RGB", (84, 56), (200, 30, 60)).save(file, "PNG")
    prompt = scorer.render([Message("user", (Text(before), Image(file.getvalue()), Text("?")))])
    continuations = [scorer.reply("a cat"), scorer.reply("something else")]
    expected = ReferenceScorer(network).log_probs(prompt, continuations)
    assert scorer.log_probs(prompt, continuations) == pytest.approx(expected, rel=1e-4)


def test_there_is_room_for_exactly_as_many_tokens_as_there_are_pages(scorer: LocalScorer) -> None:
    assert scorer.log_probs(Prompt(tokens(20)), [tokens(15 * 64 - 20)])[0] < 0
    with pytest.raises(ContextTooLong, match="961 tokens are to be scored; there is room for 960"):
        scorer.log_probs(Prompt(tokens(20)), [tokens(15 * 64 - 19)])
