import io

import pytest
from PIL import Image

from musespark.chat.templates import ChatSettings
from musespark.chat.tokenizer import Tokenizer
from musespark.evals.naming import NamingScore, Picture, answer_log_probs, blank_picture, name_pictures
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
    assert abs(score.accuracy - 0.25) < 4 * 0.07  # four standard errors of 40 draws at chance


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
    assert score.num_right == 8


def test_the_standard_error_is_that_of_a_proportion() -> None:
    score = NamingScore(num_right=50, num_pictures=100, num_choices=8)
    assert (score.accuracy, score.standard_error, score.chance) == (0.5, 0.05, 0.125)


def test_a_blank_picture_has_the_asked_grid(network: MuseSpark) -> None:
    _, grid = answer_log_probs(network, blank_picture((4, 6)), "?", ["a"], TOKENIZER, SETTINGS)
    assert grid == (4, 6)
