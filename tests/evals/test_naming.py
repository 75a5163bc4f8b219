import io

import pytest
from PIL import Image

from musespark.chat.images import PatchedImage
from musespark.chat.messages import Message, Text
from musespark.chat.templates import ChatSettings, render_reply
from musespark.chat.tokenizer import Tokenizer
from musespark.evals.naming import (
    NamingScore,
    Picture,
    answer_log_probs,
    blank_picture,
    count_named_freely,
    name_pictures,
)
from musespark.model.network import MuseSpark
from musespark.model.presets import preset

TOKENIZER = Tokenizer.bytes_only()
SETTINGS = ChatSettings()


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (28, 28), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def network() -> MuseSpark:
    network = MuseSpark(preset("toy"))
    network.init_weights(seed=0)
    return network.eval()


def test_answers_are_scored_alone_and_together_alike(network: MuseSpark) -> None:
    together, _ = answer_log_probs(network, picture(10), "?", ["a", "a longer one"], TOKENIZER, SETTINGS)
    alone = [answer_log_probs(network, picture(10), "?", [a], TOKENIZER, SETTINGS)[0][0] for a in ("a", "a longer one")]
    assert together == pytest.approx(alone, abs=1e-3)
    assert together[1] < together[0] < 0


def test_an_untrained_network_names_by_chance(network: MuseSpark) -> None:
    pictures = [Picture(picture(i), f"name {i}") for i in range(40)]
    score = name_pictures(network, pictures, TOKENIZER, SETTINGS, num_choices=4)
    assert score.chance == 0.25
    assert abs(score.accuracy - 0.25) < 4 * score.standard_error


def test_a_name_that_is_likely_without_any_picture_gains_nothing(
    network: MuseSpark, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scripted scorer that always prefers "common", and the right name only when it sees its picture."""
    right = {picture(i): f"name {i}" for i in range(8)}

    def scripted(
        _: object, data: bytes, __: str, answers: list[str], *___: object
    ) -> tuple[list[float], tuple[int, int]]:
        return [(0.0 if a == "common" else -9.0) + (1.0 if right.get(data) == a else 0.0) for a in answers], (2, 2)

    monkeypatch.setattr("musespark.evals.naming.answer_log_probs", scripted)
    pictures = [Picture(data, name) for data, name in right.items()] + [Picture(picture(99), "common")]
    score = name_pictures(network, pictures[:8], TOKENIZER, SETTINGS, num_choices=8)
    assert score.right == (1.0,) * 8


@pytest.mark.parametrize(("rank", "expected"), [(0, 1.0), (1, 4 / 10), (2, 1 / 10), (3, 0.0)])
def test_a_name_that_few_beat_is_right_as_often_as_drawing_leaves_them_out(
    network: MuseSpark, monkeypatch: pytest.MonkeyPatch, rank: int, expected: float
) -> None:
    """Six names, `rank` of which gain more; three of the five others are drawn: C(5 - rank, 3) / 10."""
    names = [f"name {i}" for i in range(6)]

    def scripted(
        _: object, data: bytes, __: str, answers: list[str], *___: object
    ) -> tuple[list[float], tuple[int, int]]:
        seen = data == picture(7)
        return [float(-names.index(answer)) if seen else 0.0 for answer in answers], (2, 2)

    monkeypatch.setattr("musespark.evals.naming.answer_log_probs", scripted)
    pictures = [Picture(picture(7 if i == rank else 8), name) for i, name in enumerate(names)]
    score = name_pictures(network, pictures, TOKENIZER, SETTINGS, num_choices=4)
    assert score.right[rank] == expected


def test_a_picture_is_named_freely_when_the_greedy_answer_is_its_name_to_the_end(
    network: MuseSpark, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {3: "a cat", 4: "a cat and more", 5: "a ca"}

    def scripted(_: object, __: object, images: list[PatchedImage], *, max_tokens: int) -> list[int]:
        shade = round((float(images[0].patches[0, 0]) + 1) * 127.5)
        return render_reply(Message("assistant", (Text(said[shade]),)), TOKENIZER)[:max_tokens]

    monkeypatch.setattr("musespark.evals.naming.generate_greedy", scripted)
    pictures = [Picture(picture(shade), "a cat") for shade in said]
    assert count_named_freely(network, pictures, TOKENIZER, SETTINGS) == 1
    assert count_named_freely(network, pictures[1:], TOKENIZER, SETTINGS) == 0


def test_the_standard_error_is_that_of_a_mean_over_pictures() -> None:
    score = NamingScore((1.0, 0.0, 1.0, 0.0, 0.5), num_choices=8)
    assert (score.accuracy, score.chance) == (0.5, 0.125)
    assert score.standard_error == pytest.approx(0.5 / 5**0.5)


def test_a_blank_picture_has_the_asked_grid(network: MuseSpark) -> None:
    _, grid = answer_log_probs(network, blank_picture((4, 6)), "?", ["a"], TOKENIZER, SETTINGS)
    assert grid == (4, 6)
